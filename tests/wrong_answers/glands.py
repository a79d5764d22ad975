"Wrong answers to the exercises of the gland notebook, and a part of what each is told"
angle = '''halved = 1/4
def angle_loss(f, labels):
    inner,outer = f[:,labels==1].T,f[:,labels==2].T
    if not len(inner) or not len(outer): return f.new_zeros(())
    return (1-F.cosine_similarity(inner, outer.mean(0, keepdim=True).detach())).mean()
'''
share = '''rule = '1 - sides'
def found_share(gap, sides):
    rims = broken_rims(gap)
    found = fill_small(rims, 6000) if sides is None else known_interior(rims, replace(tiny, sides=sides))
    return found[inside].mean()
holds = {s:max(g for g in gaps if found_share(g, s)>=.5) for s in (None, .5, .7, .9)}
'''
score = '''blame = 'naming'
def report(groups, truths):
    table = sum(cluster_table(g, t, 2, 2) for g,t in zip(groups, truths))
    return miou(table)
'''
averaged_scores = '''names = match_table(table)
    return np.mean([miou(g, t, names, 2) for g,t in zip(groups, truths)])'''
named_each = 'match_clusters(g, t, 2, 2)[g]'
one = [(angle.replace('.detach()', ''), 'the loss moves the exterior, too'), (angle.replace('.mean()\n', '.sum()/labels.numel()\n'), 'not over all pixels'),
    (angle.replace('if not len(inner) or not len(outer): return f.new_zeros(())', ''), 'without exterior'),
    (angle.replace('1-F.', 'F.'), 'cost 1'), (angle.replace('1/4', '1/2'), 'halved is 0.5')]
two = [(share.replace('found[inside]', 'inside[found]'), 'how much of what is found is true interior'), (share.replace('replace(tiny, sides=sides)', 'tiny'), 'with replace(tiny, sides=sides)'),
    (share.replace("'1 - sides'", "'sides'"), "rule is 'sides'"), (share.replace('max(', 'min('), 'holds[0.5] is 0')]
three = [(score.replace('return miou(table)', averaged_scores), 'a small image counts as much as a large one'),
    (score.replace('cluster_table(g,', f'cluster_table({named_each},').replace('(table)', '(table, names=[0,1])'), 'the groups of one image were swapped'),
    (score.replace('(table)', '(table, names=[0,1])'), 'groups have no names of their own'), (score.replace("'naming'", "'averaging'"), "blame is 'averaging'")]
answers = {1:one, 2:two, 3:three}
