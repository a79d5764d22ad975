"Typical mistakes in the exercises of scale attention: what stands in the exercise's cell, and a part of the sentence that it gets"

look = '''#| exercise 1
def looked(a, truth, eta):
    {}
    seen = a>tau
    hit = (seen&truth).sum()
    return float(hit/{}.sum()),float(hit/{}.sum())

best_eta = {}
'''
mean_tau = 'tau = torch.quantile(a.flatten(1), eta/100, dim=1).mean()'
one_each = look.format('tau = torch.quantile(a.flatten(1), eta/100, dim=1).view(-1, 1, 1, 1)', 'seen', 'truth', 80)
as_printed = look.format('tau = torch.quantile(a.flatten(1), 1-eta/100, dim=1).mean()', 'seen', 'truth', 80)
exchanged = look.format(mean_tau, 'truth', 'seen', 80)
all_pixels = look.format('tau = float(np.percentile(a.numpy(), eta))', 'seen', 'truth', 80)
the_papers = look.format(mean_tau, 'seen', 'truth', 93)
too_many = look.format(mean_tau, 'seen', 'truth', 60)

tile = '''#| exercise 2
def around(ph, x, y, magnification, side=96):
    mpp = {}
    return ph.read({}, side, side, mpp)

pixels = {}
'''
upside_down = tile.format('0.25*magnification/40', 'x-side*mpp/2, y-side*mpp/2', '{10:40, 20:160, 40:640}')
corner_in_px = tile.format('10/magnification', 'x-side/2, y-side/2', '{10:40, 20:160, 40:640}')
corner_at_the_point = tile.format('10/magnification', 'x, y', '{10:40, 20:160, 40:640}')
lengths_for_areas = tile.format('10/magnification', 'x-side*mpp/2, y-side*mpp/2', '{10:160, 20:320, 40:640}')
other_way = tile.format('10/magnification', 'x-side*mpp/2, y-side*mpp/2', '{10:640, 20:160, 40:40}')

brightness = '''#| exercise 3
def cue(image): return image.mean()
'''
grey_share = '''#| exercise 3
def cue(image): return (image==128).all(-1).mean()
'''
constant = '''#| exercise 3
def cue(image): return 1.
'''
a_list = '''#| exercise 3
def cue(image): return image.mean((0,1))
'''

answers = {
    1: [(one_each, 'every image has a threshold of its own'), (as_printed, 'as Eq. 1 is printed'), (exchanged, 'have changed places'),
        (all_pixels, 'the mean of the percentiles of the images'), (the_papers, 'most of the nuclei are not seen'), (too_many, 'is not where the Dice is highest')],
    2: [(upside_down, 'more micrometres belong to a pixel'), (corner_in_px, 'half a side is a length in um, not in px'),
        (corner_at_the_point, 'half a side is a length in um, not in px'), (lengths_for_areas, 'four times the area'), (other_way, 'covers more pixels')],
    3: [(brightness, 'stay as they are when the scale changes'), (grey_share, 'stay as they are when the scale changes'), (constant, 'the same of every tile'), (a_list, 'one number, not 3')]}
