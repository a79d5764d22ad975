"Wrong answers to the exercises of the U-Net# notebook, and a part of what each is told"
gate = '''still_depends = False
class CoarseGate(nn.Module):
    def __init__(self, channels, lead):
        super().__init__()
        self.x,self.g,self.psi = nn.Conv2d(channels, channels, 1),nn.Conv2d(lead, channels, 1),nn.Conv2d(channels, 1, 1)

    def forward(self, x, g):
        led = F.interpolate(self.g(g), size=x.shape[2:], mode='bilinear')
        return x*self.psi(F.relu(self.x(x)+led)).sigmoid()
'''
counted = '''grows,moves,even = 'missed',False,.5
def errors(beta, pooled):
    found = fit_pixels(FocalTversky(beta, pooled=pooled))
    return [((found==a)&(y==b)).sum().item()/y.sum().item() for a,b in ((1,0), (0,1))]
'''
turned = '''made_up = {1, 3, 4}
def turned_pair(image, classes, rng):
    turn,angle = partial(ndi.rotate, axes=(0,1), reshape=False, mode='reflect'),rng.uniform(-45, 45)
    return turn(image, angle, order=1),turn(classes, angle, order=0)
'''
one = [(gate.replace('nn.Conv2d(channels, 1, 1)', 'nn.Conv2d(channels, channels, 1)'), 'each channel is weakened by a number of its own'),
    (gate.replace('F.relu(self.x(x)+led)', 'self.x(x)+led'), 'without a ReLU'), (gate.replace('.sigmoid()', ''), 'the sigmoid is missing'),
    (gate.replace('.sigmoid()', '.flatten(2).softmax(-1).view(len(x), 1, *x.shape[2:])'), 'not by a softmax over all'),
    (gate.replace('F.relu(self.x(x)+led)', 'F.relu(led)'), 'the fine features have no say'), (gate.replace('still_depends = False', 'still_depends = True'), 'write down the plain sum')]
two = [(counted.replace('pooled=pooled', 'pooled'), 'do you hand on beta'), (counted.replace('((1,0), (0,1))', '((0,1), (1,0))'), 'the two shares are swapped'),
    (counted.replace('y.sum().item()', 'y.numel()'), 'divide by y.sum()'), (counted.replace("'missed'", "'invented'"), "grows is 'invented'"),
    (counted.replace('False', 'True'), 'moves is True'), (counted.replace('.5', '.7'), 'even is 0.7')]
three = [(turned.replace('order=0', 'order=1'), 'numbers of classes were interpolated'), (turned.replace('order=1', 'order=0'), 'the image has no shades'),
    (turned.replace('classes, angle', 'classes, rng.uniform(-45, 45)'), 'two different angles'), (turned.replace('rng.uniform(-45, 45)', '30'), 'draw the angle from rng'),
    (turned.replace('turn(classes, angle, order=0)', 'np.where(np.isin(o := turn(classes, angle, order=1), classes), o, 0)'), 'class 2 had 16 pixels'),
    (turned.replace('{1, 3, 4}', '{3}'), 'made_up is {3}')]
answers = {1:one, 2:two, 3:three}
