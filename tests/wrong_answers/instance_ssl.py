"Typical mistakes in the exercises of instance-aware self-supervision: what stands in the exercise's cell, and a part of the sentence that it gets"

ranking = '''#| exercise 1
def fair_ranking(sp, sn, cp, cn, margin=1.):
    asks = cp!=cn
    return {}
'''
nan_of_ties = ranking.format('(sn-sp+margin).relu()[asks].mean()')
ties_in_the_mean = ranking.format('((sn-sp+margin).relu()*asks).mean()')
order_turned = ranking.format('((sp-sn+margin).relu()*asks).sum()/asks.sum().clamp(min=1)')
no_hinge = ranking.format('((sn-sp+margin)*asks).sum()/asks.sum().clamp(min=1)')
ties_teach = ranking.format('(sn-sp+margin).relu().mean()')
not_a_function = ranking.format('(sn-sp+margin).relu()[asks].mean() if asks.any() else torch.tensor(0.)')

squares = '''#| exercise 2
{}def boxes_of(n, window=125, side=96, small=64):
    place = lambda room: (torch.rand(n, 2)*{}).long()
    anchor,positive = place(window-side),place(window-side)
    corners = anchor,positive,{}
    sides = [torch.full((n,1), s) for s in (side,side,small)]
    return torch.stack([torch.cat(o, 1) for o in zip(corners, sides)], 1)
'''
never_the_last = squares.format('', 'room', 'positive+place(side-small)')
inside_the_anchor = squares.format('', '(room+1)', 'anchor+place(side-small)')
one_too_far = squares.format('', '(room+2)', 'positive+place(side-small)')
not_measured = squares.format('', '(room+1)', 'positive+place(side-small)')
one_direction = squares.format('', '(room+1)', 'positive+place(side-small)')+'''
places = torch.rand(2, 5000)*torch.tensor([[29.],[61.]])
outside = 1-float(((places[1]>=places[0])&(places[1]+64<=places[0]+96)).float().mean())
'''

three = '''#| exercise 3
def ask(cue, windows, boxes, size=96):
    p,n = (cut_patches(windows, boxes[:,i], size) for i in (1,2))
    b = cut_patches(windows, boxes[:,1], size, {})
    share = lambda x, y: float((cue(x)>cue(y)).float().mean())
    return {{'usual':{}, 'all blurred':share({}, n), 'blur alone':share(p, {})}}

doors = {}
'''
still_sharp = three.format('boxes[:,2,2]', 'share(p, n)', 'p', 'b', ['contrast','slope'])
with_the_negative = three.format('boxes[:,2,2]', 'share(p, n)', 'b', 'n', ['contrast','slope'])
other_way_round = three.format('boxes[:,2,2]', 'share(n, p)', 'b', 'b', ['contrast','slope'])
not_its_own = three.format('boxes[:,2,2].flip(0)', 'share(p, n)', 'b', 'b', ['contrast','slope'])
only_above = three.format('boxes[:,2,2]', 'share(p, n)', 'b', 'b', ['slope'])
all_of_them = three.format('boxes[:,2,2]', 'share(p, n)', 'b', 'b', ['contrast','slope','darkness'])

answers = {
    1: [(nan_of_ties, 'nan, the mean of no numbers'), (ties_in_the_mean, 'ties are counted in the mean'), (order_turned, 'the order is turned round'),
        (no_hinge, 'the loss is below 0'), (ties_teach, 'ties still teach'), (not_a_function, 'cannot be differentiated')],
    2: [(never_the_last, 'the last place is never drawn'), (inside_the_anchor, 'do not lie inside their positive'), (one_too_far, 'out of the window'),
        (not_measured, 'how often the negative lay outside before'), (not_measured+'\noutside = 0.29', 'the share that lies inside'), (one_direction, 'one direction only')],
    3: [(still_sharp, 'the positive is still sharp'), (with_the_negative, 'with no negative'), (other_way_round, 'turn it round'),
        (not_its_own, 'the side of its own negative'), (only_above, 'is a door, too'), (all_of_them, 'and no other')]}
