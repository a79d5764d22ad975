"Typical mistakes in the exercises of DCLR: what stands in the exercise's cell, and a part of the sentence that it gets"

no_tau = '''#| exercise 1
def push(s, twin, tau):
    p = torch.softmax(s/tau, 0)
    p[twin] -= 1
    return p

hardest = {tau: 0.5 for tau in taus}
'''
turned_round = '''#| exercise 1
def push(s, twin, tau):
    p = torch.softmax(s/tau, 0)
    return (F.one_hot(torch.tensor(twin), len(s))-p)/tau

hardest = {}
'''
numerator_forgotten = '''#| exercise 1
def push(s, twin, tau): return torch.softmax(s/tau, 0)/tau
'''
twin_not_below = '''#| exercise 1
def push(s, twin, tau):
    e = torch.exp((s-s.max())/tau)
    e[twin] = 0
    p = e/e.sum()
    p[twin] = -1
    return p/tau
'''
overflow = '''#| exercise 1
def push(s, twin, tau):
    e = torch.exp(s/tau)
    p = e/e.sum()
    p[twin] -= 1
    return p/tau
'''
with_the_twin = '''#| exercise 1
def push(s, twin, tau):
    p = torch.softmax(s/tau, 0)
    p[twin] -= 1
    return p/tau

hardest = {tau: push(near, 0, tau)[1]/push(near, 0, tau).abs().sum() for tau in taus}
'''

step = '''#| exercise 2
def moco_step(query_net, key_net, queue, x1, x2, m=0.99, tau=0.2):
    {}
'''
gradient_left = step.format('''for k,q in zip(key_net.parameters(), query_net.parameters()): k.data.lerp_(q.data, 1-m)
    keys = F.normalize(key_net(x2), dim=1)
    loss = info_nce(query_net(x1), keys, queue, tau)
    return loss,torch.cat([keys, queue])[:len(queue)]''')
own_key_left = step.format('''with torch.no_grad():
        for k,q in zip(key_net.parameters(), query_net.parameters()): k.lerp_(q, 1-m)
        keys = F.normalize(key_net(x2), dim=1)
    queue = torch.cat([keys, queue])[:len(queue)]
    return info_nce(query_net(x1), keys, queue, tau),queue''')
queue_stands_still = step.format('''with torch.no_grad():
        for k,q in zip(key_net.parameters(), query_net.parameters()): k.lerp_(q, 1-m)
        keys = F.normalize(key_net(x2), dim=1)
    return info_nce(query_net(x1), keys, queue, tau),queue''')
all_mended = step.format('''with torch.no_grad():
        for k,q in zip(key_net.parameters(), query_net.parameters()): k.lerp_(q, 1-m)
        keys = F.normalize(key_net(x2), dim=1)
    return info_nce(query_net(x1), keys, queue, tau),torch.cat([keys, queue])[:len(queue)]''')

curve = '''#| exercise 3
def crf_dice(prob, image, truth, window):
    crf = dclr_crf(replace(settings, crf_filter={}))
    return dice({}, truth)

needed = {}
'''
normal_tissue = curve.format('window', 'crf.smooth(prob, image).argmax(0)==0', {8:11, 16:21})
before_the_crf = curve.format('window', 'prob.argmax(0)==1', {8:11, 16:21})
window_forgotten = curve.format(21, 'crf.smooth(prob, image).argmax(0)==1', {8:11, 16:21})
same_for_both = curve.format('window', 'crf.smooth(prob, image).argmax(0)==1', {8:11, 16:11})
the_widest = curve.format('window', 'crf.smooth(prob, image).argmax(0)==1', {8:21, 16:31})

answers = {
    1: [(no_tau, 'the inner derivative is 1/tau'), (turned_round, 'the signs are turned round'), (numerator_forgotten, 'comes from the numerator is missing'),
        (twin_not_below, 'it has a place in the denominator, too'), (overflow, 'at tau = 0.01 this overflows'), (with_the_twin, 'divide by the push on the four')],
    2: [(gradient_left, 'the key encoder gets a gradient'), (own_key_left, 'cannot fall below log 2'), (queue_stands_still, 'the oldest be gone'),
        (all_mended, 'say how low the loss could fall before'), (all_mended+'\nfloor = 0.', 'floor was not 0')],
    3: [(normal_tissue, 'the tumour is channel 1'), (before_the_crf, 'the map before the CRF'), (window_forgotten, 'hand it on as crf_filter'),
        (same_for_both, 'need a wider window'), (the_widest, 'the smallest windows')]}
