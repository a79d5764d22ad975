"""A network that must guess the magnification of a tile may look at a few pixels only. Where it looks, the paper says, are the nuclei.

A tile of tissue is shown without a word about its magnification. You can name it, because you know how large a nucleus is. Sahasrabudhe et al. turn this around: if nuclei are what gives the
magnification away, then a network that has to name it, and may look at a few pixels only, will look at the nuclei. This module offers the steps one by one:

1. cut tiles at 10x, 20x and 40x (`slide_tiles`, or `sample_tiles` for images);
2. train an attention network `AttentionNet` and a scale classifier together (`ScaleAttention`, `attention_dls`, `attention_learner`), with a `SparseSigmoid` that lets few pixels through;
3. average the attention over seven views, threshold it, and cut it into nuclei (`attention_predict`);
4. put the result beside the truth (`attention_evaluate`) and beside what needs no learning at all.

`stain_guided_fit` is an extension of ours that starts from what is known of the stain.

### The recipe

Every number of the method is a field of `AttentionRecipe`, with its place in the paper; a star marks what the paper leaves open, and *code* what only the authors' code tells.

### Tiles at three magnifications

`slide_tiles` goes through slides and magnifications and writes one array of tiles for each pair into a folder; tiles with less than `min_tissue` tissue (found in HSV) are left out. The paper has more
than a million tiles: too many for memory, so the arrays are opened where they lie. A run that was killed goes on with the first array that is missing. The colours of a slide
are measured once, on its tiles of the lowest magnification. A slide that was not scanned at the highest magnification cannot give tiles of it: that is an error, and no pixel is invented. The magnification comes from the resolution in the file, never from the number of a level.

### Tiles from images

The variant `-WSI` has no slides: it takes the annotated images themselves, 1000 x 1000 px at 40x, and shrinks them. `sample_tiles` does that for any list of `Sample`s whose resolution is known. An image that was scanned at 20x gives tiles of 20x and 10x only.

### Batches that are balanced

Since the class of an item follows from its number, any run of items holds all magnifications equally often, up to one.

`AttentionNet` is six of them with dilations 1 to 20, between a 3 x 3 and a 1 x 1 convolution. At full width it has 445,825 parameters, and one confidence depends on a square of 167 px. Images come in
as float in [0,1] and are brought to ImageNet's mean and deviation inside.

### G, which decides, and the two together

`ScaleAttention` holds F, the gate and the scale network G, a ResNet from timm. The authors start G from ImageNet weights. Where those cannot be had it starts at random and says so; `started` tells which it was.

## Training

The method is a fastai callback. `AttentionLosses` takes the attention out of the model's answer, so that the usual loss and metrics see scores only, then adds the two losses
with their weights. What each of them was, and the share of magnifications named right, is kept batch by batch. Each batch draws one of the six views.

The paper selects the epoch by the Dice coefficient between attention and truth on the validation images. `AttentionDice` is that, as a metric; it also keeps the attention of the first image after every epoch, so
that one can see it change. This is where labels come in: *the method is not free of labels from end to end*, since annotated images choose the epoch (and, later on, four numbers of the post-processing).

`attention_learner` puts it together. With a `folder`, a training that was killed goes on, and the best epoch is kept.

`attention_model` makes the network that `load_model` fills with saved weights, and does not ask for ImageNet's.

## Post-processing

A map is not yet a count. `watershed_instances` cuts it into nuclei: two openings and closings, distance transform, Gaussian, maxima, watershed (its own notebook builds it step by step). `attention_predict` does all of it, for an
image or for the part of a slide that fits into memory.

- **Where F begins** (`warm`). There are two valleys, nuclei and gaps. The random start of F decides into which it rolls, and a G that knows nothing yet pushes it about at random. `warm_up` sets both right before the scale task begins. For `warm` batches F
learns to copy the amount of haematoxylin in a pixel, unmixed by colour, smoothed and standardised; then F rests, and for as many batches G learns to name the magnification from what F shows. No nucleus has to be outlined for that.
(The authors start G from ImageNet weights, which may calm the beginning in much the same way.)

### The same on real tissue

Does this hold outside the phantom? `attention_run` trains one system on the 19 training images of MoNuSeg, chooses epoch and post-processing on the 11 validation images, as the paper did, and writes its scores into `results/`: on those 11 (which flatter, since the choice was made on them),
and on images that had no part in anything.

Five scores go into the ledger: the paper's three, under its names (its ADC is our `dice`), PQ and the symmetric distance.

`measure` treats all methods alike: choose the post-processing on the first set, measure on all, write.

A training is long, and what is in the ledger need not be run again: `attention_done` asks for the score that is written last.

## An extension: say what is known of the stain

The scale task leaves to chance what every student of histology knows: haematoxylin stains nuclei. What follows is *ours*, not the paper's, and it stays beside the paper's method, not in its place. No outlined nucleus is trained on; labels enter where they do in the paper, in choosing the teacher's epoch and the post-processing on validation images:

1. a *prior* from the stain: a pixel is rather nucleus where it holds more haematoxylin than the halfway point between its neighbourhood and the threshold of the image;
2. the *scale attention* has a vote, too: where it looks, the prior is raised, elsewhere lowered;
3. *what is not clear is not taught*, and the lines between touching objects are taught as background;
4. a fresh network learns these labels under strong stain jitter, so that it cannot lean on absolute darkness, and then teaches the next one with its own confident map, averaged over views (*self-training*).

#### The network, and what it is taught

`NucleusNet` is the attention network with a plain sigmoid. `LabelledTiles` draws crops as `ScaleTiles` does, and the labels with them.

#### A teacher's vote

`guided_margin` is the prior with the vote of a teacher: any function from an image to a map in [0,1], such as the attention of the scale task.

#### Rounds

`stain_guided_fit` runs the rounds. Each starts from a fresh network: what the first has learnt reaches the second through its confident pixels only. Every round calls a little less nucleus than the one before,
so more rounds are not better; whether two are, the tables below tell. With a `folder` every finished round is kept, and a run that was killed goes on with the next.
Images that were scanned at less than the largest magnification are left out, because the prior's lengths are those of 40x.

All rounds in one function. The samples' outlines are not looked at.

### Nuclei of your own images

`nuclei_model` is the extension's network, trained on the 16 images of those 19 that are at 40x, and small enough to ship with the package. By the tables above it does no better than the classical methods; it is here to be looked at and improved. It is a function from an image to its nuclei, of any resolution, and what `histolab-nb segment IMAGE` uses. Its weights come from data
under CC BY-NC-SA 4.0: for teaching and research, not for products, and never for diagnosis.

Docs: https://histolab-nb.github.io/histolab_nb/papers/scale_attention.html.md"""

# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/papers/20_scale_attention.ipynb.

# %% auto #0
__all__ = ['variants', 'mends', 'View', 'views', 'fills', 'Nuclei', 'ledger_scores', 'small_grid', 'attention_done', 'classical',
           'AttentionRecipe', 'variant', 'slide_tiles', 'shrink', 'normalised', 'sample_tiles', 'attention_tiles',
           'ScaleTiles', 'attention_dls', 'DilatedBlock', 'AttentionNet', 'receptive_field', 'SparseSigmoid', 'attend',
           'scale_network', 'ScaleAttention', 'smoothness', 'equivariance', 'AttentionLosses', 'AttentionDice',
           'attention_map', 'attention_learner', 'attention_fit', 'attention_model', 'attention_watershed',
           'attention_predict', 'slide_box', 'attention_evaluate', 'attention_auc', 'haematoxylin', 'warm_up',
           'phantom_auc', 'measure', 'attention_run', 'StainGuidedRecipe', 'stain_prior', 'prior_nuclei', 'soft_labels',
           'NucleusNet', 'LabelledTiles', 'taught_loss', 'guided_map', 'guided_predict', 'guided_margin',
           'guided_round', 'stain_guided_fit', 'classical_map', 'nuclei_model']

# %% ../nbs/papers/20_scale_attention.ipynb #cf1fcfa8
from collections import namedtuple
from dataclasses import dataclass, replace
import itertools, json, time, histolab_nb, numpy as np, pandas as pd, timm, torch
from fastai.basics import *
from PIL import Image
from fastai.callback.schedule import *
from fastai.metrics import accuracy as batch_accuracy
from scipy import ndimage as ndi
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu
from skimage.transform import downscale_local_mean
from sklearn.metrics import roc_auc_score
from . import ledger
from .core import *
from .ledger import is_done, save_scores
from .slides import *
from .stain import *
from .metrics import *
from .plots import *
from .phantom import *
from .datasets import *
from .augment import *
from .postprocess import *
from .training import *

# %% ../nbs/papers/20_scale_attention.ipynb #e6303c92
@dataclass
class AttentionRecipe(Recipe):
    "Every number of the attention paper; a star marks what it leaves open, 'code' what only its code tells"
    magnifications:tuple = (10,20,40) # the classes (Sec. 4.1)
    tile:int = 224 # side of a tile, px (Sec. 4.1)
    min_tissue:float = 0.7 # part of a tile that must be tissue (Sec. 4.1; code 0.9)
    normalise:bool = True # Reinhard's stain normalisation (Sec. 4.1)
    crop:int = 160 # side of the random crop, px (Sec. 4.2)
    source:str = 'slides' # tiles from 'slides' or from 'images' (Sec. 3.3, -WSI)
    turn:bool = True # random turns and flips (code)
    stain_jitter:float = 0.05 # haematoxylin and eosin times 1-x .. 1+x (code: normal, deviation 0.03)
    width:int = 64 # channels of the attention network F (Fig. 1)
    dilations:tuple = (1,2,3,5,10,20) # of its residual blocks (Fig. 1)
    sparse:bool = True # the compressed and biased sigmoid, or a plain one (Sec. 3.3, -sparse)
    eta:float = 93. # percentile of the confidence that is the threshold, % (Sec. 3.3)
    sharpness:float = 20. # compression r of the sigmoid (Sec. 3)
    memory:float = 0.9 # share of the old threshold in its running mean (code)
    fill:str = 'mean' # what stands where nobody looks: 'mean' grey (code), 'black' or 'white' *
    scale_net:str = 'resnet34' # the scale network G, a name of timm's (Sec. 3)
    pretrained:bool = True # start G from ImageNet weights (code)
    warm:int = 0 # batches in which F, then as many in which G learns alone before both do; the paper has none (ours)
    warm_lr:float = 5e-3 # rate of F meanwhile (ours)
    smooth:float = 1. # weight of the smoothness loss, Eq. 3; 0 is -smooth
    equiv:float = 1. # weight of the equivariance loss, Eq. 4; 0 is -equiv
    symmetric:bool = False # does Eq. 4 teach both sides? (code: one)
    batch_size:int = 32 # tiles a batch (Sec. 4.2)
    batches:int = 100 # batches an epoch (Sec. 4.2)
    epochs:int = 60 # the paper: flat after about 30 (Sec. 3.4)
    lr:float = 2e-4 # of Adam (Sec. 4.2)
    beta1:float = 0.9 # of Adam (Sec. 4.2)
    wd:float = 1e-4 # weight decay (Sec. 4.2)
    views:int = 7 # views averaged in prediction: the image and its 6 transforms (code); 1 is the image alone
    threshold:float = 0.5 # of the averaged attention (code)
    coarse:int = 2 # radius of the first opening and closing, px (Sec. 3.4)
    fine:int = 1 # radius of the second, px (Sec. 3.4)
    sigma:float = 1. # of the Gaussian on the distance, px (Sec. 3.4)
    peak:int = 7 # radius in which a maximum must be the highest, px (Sec. 3.4)
    seed:int = 42 # of everything random
    side:int = 8192 # side of the phantom slide, px at 40x

# %% ../nbs/papers/20_scale_attention.ipynb #c8775b7b
AttentionRecipe._scales = dict(
    tiny=dict(crop=80, width=8, scale_net='resnet10t', pretrained=False, lr=2e-3, batch_size=18, batches=16, epochs=4, views=1, side=3072),
    small=dict(crop=96, width=16, scale_net='resnet18', source='images', lr=1e-3, warm_lr=2e-3, batch_size=24, batches=24, epochs=10))

# %% ../nbs/papers/20_scale_attention.ipynb #2e8c09bb
variants = {'proposed':{}, '-smooth':dict(smooth=0.), '-equiv':dict(equiv=0.), '-sparse':dict(sparse=False), '-WSI':dict(source='images')}
mends = {'white 80':dict(fill='white', eta=80.), 'warm':dict(warm=60), 'warm white 80':dict(warm=60, fill='white', eta=80.)}

def variant(
    name:str, # a key of `variants` or `mends`
    recipe, # `AttentionRecipe`
)->AttentionRecipe:
    "The recipe of one of the paper's systems (Sec. 3.3), or of ours"
    known = variants | mends
    if name not in known: raise DataError(f'there is no variant {name!r}', fix=f'Choose one of {", ".join(known)}')
    return replace(recipe, **known[name])

# %% ../nbs/papers/20_scale_attention.ipynb #a0b3a40a
def _tile_array(slide, magnification, recipe, normaliser):
    "All tiles of a slide at one magnification, uint8 (N,S,S,3)"
    if magnification>slide.magnification*1.05:
        raise DataError(f'this slide was scanned at {slide.magnification:g}x and cannot give tiles of {magnification:g}x', slide.path, 'Leave the slide out, or choose other magnifications')
    table = tile_table(slide, recipe.tile, magnification=magnification, min_tissue=recipe.min_tissue)
    return np.concatenate([normaliser.transform(x) if normaliser else x for x,_ in read_tiles(table, slide=slide, progress=False)])

def slide_tiles(
    slides, # list of `Slide`
    recipe, # `AttentionRecipe`
    folder, # where the arrays are kept
)->dict: # magnification: list of uint8 (N,S,S,3), opened on disk
    "Tiles of slides at every magnification of the recipe (Sec. 4.1)"
    folder,res = out_folder(folder),{m:[] for m in recipe.magnifications}
    for s in slides:
        norm,how = None,f'{recipe.tile}_{recipe.min_tissue:g}{"_reinhard" if recipe.normalise else ""}'
        for m in recipe.magnifications:
            path = folder/f'{Path(s.path).stem}_{m:g}x_{how}.npy'
            if not path.exists():
                if recipe.normalise and norm is None: norm = Reinhard().fit(list(_tile_array(s, min(res), recipe, None)))
                with atomic_path(path) as part, part.open('wb') as f: np.save(f, _tile_array(s, m, recipe, norm))
            res[m].append(np.load(path, mmap_mode='r'))
    return res

# %% ../nbs/papers/20_scale_attention.ipynb #45abf7f9
def shrink(
    image, # uint8 (H,W,3)
    k:int, # factor
)->np.ndarray: # uint8 (H//k,W//k,3)
    "The image `k` times smaller, each pixel the mean of k x k"
    h,w = (o//k*k for o in image.shape[:2])
    return image if k==1 else downscale_local_mean(image[:h,:w], (k,k,1)).round().astype(np.uint8)

def normalised(
    image, # uint8 (H,W,3)
    recipe, # `AttentionRecipe`
)->np.ndarray: # uint8 (H,W,3)
    "The image in the colours that the network knows, if the recipe says so"
    return Reinhard().fit(image).transform(image) if recipe.normalise else image

def sample_tiles(
    samples, # list of `Sample` with known resolution
    recipe, # `AttentionRecipe`
)->dict: # magnification: list of uint8 (1,H,W,3), one an image
    "The images themselves at every magnification they hold, for the variant `-WSI`"
    res = {m:[] for m in recipe.magnifications}
    for s in samples:
        if s.mpp is None: raise DataError('the resolution of this image is not known', s.name, 'Give it to the reader, as in image_folder(..., mpp=0.25)')
        img,own = normalised(s.image, recipe),10/s.mpp
        for m in res:
            if m>own*1.25: continue
            res[m].append(shrink(img, round(own/m))[None])
            if min(res[m][-1].shape[1:3])<recipe.crop: raise DataError(f'at {m}x this image is too small for a crop of {recipe.crop} px', s.name, 'Choose a smaller crop')
    return res

# %% ../nbs/papers/20_scale_attention.ipynb #f2048f1b
def attention_tiles(
    recipe, # `AttentionRecipe`
    slides=(), # list of `Slide`
    samples=(), # list of `Sample`
    folder=None, # where tiles of slides are kept
)->dict: # magnification: list of uint8 arrays
    "Tiles from slides, or from images (`-WSI`), as the recipe says (Sec. 3.3)"
    if recipe.source not in ('slides', 'images'): raise DataError(f'there is no source {recipe.source!r}', fix="Choose 'slides' or 'images'")
    if not len(slides if recipe.source=='slides' else samples): raise DataError(f'the recipe wants {recipe.source}, and there are none', fix="Say source='slides' or source='images'")
    return slide_tiles(slides, recipe, folder) if recipe.source=='slides' else sample_tiles(samples, recipe)

# %% ../nbs/papers/20_scale_attention.ipynb #17908920
class ScaleTiles:
    "Random crops of tiles; the magnification of item i is class i modulo the number of magnifications (Sec. 4.2)"
    def __init__(self,
        tiles:dict, # magnification: list of uint8 (N,H,W,3)
        recipe, # `AttentionRecipe`
        n:int, # items an epoch
        seed:int|None=None, # draws the same items every time; anew each time if none
    ):
        if any(not sum(len(a) for a in v) for v in tiles.values()): raise DataError('there are no tiles of one of the magnifications')
        self.tiles,self.r,self.n,self.seed = list(tiles.values()),recipe,n,seed
        self.ends = [np.cumsum([len(a) for a in v]) for v in self.tiles]

    def __len__(self): return self.n

# %% ../nbs/papers/20_scale_attention.ipynb #a1de1635
@patch
def __getitem__(self:ScaleTiles, i):
    "A crop uint8 (3,S,S) and its class"
    g = None if self.seed is None else torch.Generator().manual_seed(self.seed*100_003+i)
    draw = lambda n: int(torch.randint(n, (1,), generator=g))
    c,s = i%len(self.tiles),self.r.crop
    k = draw(self.ends[c][-1])
    a = np.searchsorted(self.ends[c], k, side='right')
    t = self.tiles[c][a][k-self.ends[c][a]]
    y,x = (draw(n-s+1) for n in t.shape[:2])
    t = np.rot90(t[y:y+s,x:x+s], draw(4)) if self.r.turn else t[y:y+s,x:x+s]
    t = t[:,::-1] if self.r.turn and draw(2) else t
    return torch.from_numpy(np.ascontiguousarray(t)).permute(2,0,1),c

# %% ../nbs/papers/20_scale_attention.ipynb #15382e4b
def attention_dls(
    source, # tiles of `slide_tiles` or `sample_tiles`
    recipe, # `AttentionRecipe`
    valid=None, # tiles for the scale accuracy in validation; those of training if none
    device=None, # the best there is, if none
    workers:int=0, # processes that read tiles
)->DataLoaders: # batches of uint8 (B,3,S,S) and classes (B,)
    "Training and validation batches with all magnifications in equal parts (Sec. 4.2)"
    r,device = recipe,device or get_device()
    set_seed(r.seed)
    train = DataLoader(ScaleTiles(source, r, r.batch_size*r.batches), bs=r.batch_size, num_workers=workers, device=device)
    fixed = DataLoader(ScaleTiles(valid or source, r, 8*r.batch_size, seed=r.seed), bs=r.batch_size, device=device)
    return DataLoaders(train, fixed, device=device)

# %% ../nbs/papers/20_scale_attention.ipynb #4be12640
View = namedtuple('View', 'name to back')

def _turn(k): return View(f'turn {90*k}', lambda x: torch.rot90(x, k, (-2,-1)), lambda x: torch.rot90(x, -k, (-2,-1)))
def _flip(name, d): return View(name, lambda x: x.flip(d), lambda x: x.flip(d))

views = [_flip('flip across', -1), _flip('flip down', -2), View('transpose', lambda x: x.mT, lambda x: x.mT), *[_turn(k) for k in (1,2,3)]]

# %% ../nbs/papers/20_scale_attention.ipynb #75427026
class DilatedBlock(nn.Module):
    "Two dilated 3x3 convolutions with batch norm beside a shortcut, ReLU after the sum (Fig. 1)"
    def __init__(self,
        c:int, # channels
        d:int, # dilation
    ):
        super().__init__()
        conv = lambda: [nn.Conv2d(c, c, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(c)]
        self.body = nn.Sequential(*conv(), nn.ReLU(inplace=True), *conv())

    def forward(self, x): return F.relu(x+self.body(x))

# %% ../nbs/papers/20_scale_attention.ipynb #740fd3b7
def _imagenet(): return (torch.tensor(o)[:,None,None] for o in (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD))

class AttentionNet(nn.Module):
    "F of the paper: a confidence for every pixel (Fig. 1)"
    def __init__(self,
        width:int=64, # channels
        dilations:tuple=(1,2,3,5,10,20), # one residual block each
    ):
        super().__init__()
        start = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*start, *[DilatedBlock(width, d) for d in dilations], nn.Conv2d(width, 1, 1))
        for name,o in zip(('mean','std'), _imagenet()): self.register_buffer(name, o)

    def forward(self, x): return self.net(((x-self.mean)/self.std).contiguous(memory_format=torch.channels_last)) # float (B,3,H,W) in [0,1] to (B,1,H,W)

# %% ../nbs/papers/20_scale_attention.ipynb #9773b85d
def receptive_field(
    net, # module from float (B,3,H,W) to (B,C,H,W), of the same size
    side:int=201, # side of the test image, px; larger than the field
)->int: # px
    "Side of the square of input pixels that an output pixel depends on, measured with gradients"
    net = deepcopy(net).double().eval()
    for p in net.parameters(): p.data.fill_(0.1)
    x = torch.full((1,3,side,side), 0.9, dtype=torch.double, requires_grad=True)
    net(x)[0,0,side//2,side//2].backward()
    return int((x.grad[0].abs().sum(0)>0).any(0).sum())

# %% ../nbs/papers/20_scale_attention.ipynb #276f1058
class SparseSigmoid(nn.Module):
    "The compressed and biased sigmoid, Eq. 1; a plain one if not `sparse`"
    def __init__(self,
        eta:float=93., # percentile of the confidence that is the threshold, %
        sharpness:float=20., # compression r
        memory:float=0.9, # share of the old threshold in the running one
        sparse:bool=True, # if not: 1/(1+exp(-a))
    ):
        super().__init__()
        if not 0<eta<100: raise DataError(f'eta is a percentile between 0 and 100, not {eta}')
        store_attr()
        self.register_buffer('tau', torch.zeros(()))
        self.register_buffer('seen', torch.zeros((), dtype=torch.long))

    def batch_tau(self, a): # float (B,1,H,W)
        k = int((100-self.eta)*a[0].numel()/100)
        return a.detach().float().flatten(1).topk(k+1, sorted=True)[0][:,k].mean()

# %% ../nbs/papers/20_scale_attention.ipynb #caef1828
@patch
def forward(self:SparseSigmoid,
    a, # confidence, float (B,1,H,W)
    running:bool=False, # use the running threshold in training, too?
): # attention in [0,1], as `a`
    "Attention from confidence"
    if not self.sparse: return a.sigmoid()
    if not self.training or running: return torch.sigmoid(self.sharpness*(a-self.tau))
    tau = self.batch_tau(a)
    self.tau.copy_(torch.where(self.seen>0, self.memory*self.tau+(1-self.memory)*tau, tau))
    self.seen += 1
    return torch.sigmoid(self.sharpness*(a-tau))

# %% ../nbs/papers/20_scale_attention.ipynb #203c4e46
fills = dict(mean=timm.data.IMAGENET_DEFAULT_MEAN, black=(0.,0.,0.), white=(1.,1.,1.))

def attend(
    x, # float (B,3,H,W) in [0,1]
    A, # attention, float (B,1,H,W) in [0,1]
    fill:str='mean', # what stands where the attention is 0: 'mean' grey, 'black' or 'white'
): # float (B,3,H,W) in [0,1]
    "The attended image J (Sec. 3)"
    if fill not in fills: raise DataError(f'there is no fill {fill!r}', fix=f'Choose one of {", ".join(fills)}')
    return A*x+(1-A)*x.new_tensor(fills[fill])[:,None,None]

# %% ../nbs/papers/20_scale_attention.ipynb #0e459e91
def scale_network(
    recipe, # `AttentionRecipe`
)->tuple: # (module from float (B,3,H,W) to scores (B,M), 'imagenet' or 'random')
    "G of the paper, with ImageNet weights if wanted and to be had"
    make = partial(timm.create_model, recipe.scale_net, num_classes=len(recipe.magnifications))
    if recipe.scale_net not in timm.list_models(): raise DataError(f'timm has no network {recipe.scale_net!r}', fix='timm.list_models() names them')
    return with_weights(lambda load: make(pretrained=load), recipe.pretrained, recipe.scale_net)

# %% ../nbs/papers/20_scale_attention.ipynb #8f058c87
class ScaleAttention(nn.Module):
    "Attention network, sparse sigmoid and scale network in one (Fig. 1)"
    def __init__(self,
        recipe, # `AttentionRecipe`
    ):
        super().__init__()
        r = self.recipe = recipe
        self.look,self.gate = AttentionNet(r.width, r.dilations),SparseSigmoid(r.eta, r.sharpness, r.memory, r.sparse)
        self.scale,self.started = scale_network(r)
        for name,o in zip(('mean','std'), _imagenet()): self.register_buffer(name, o)

    def attention(self, x, running=False): return self.gate(self.look(x), running) # float (B,3,H,W) in [0,1] to (B,1,H,W)

    def classify(self, x, A): return self.scale((attend(x, A, self.recipe.fill)-self.mean)/self.std) # scores (B,M)

    def forward(self, x):
        "Scores of the magnifications (B,M), and the attention (B,1,H,W)"
        A = self.attention(x)
        return self.classify(x, A),A

# %% ../nbs/papers/20_scale_attention.ipynb #61f0c8cd
def smoothness(
    A, # attention, float (B,1,H,W)
): # float ()
    "Mean absolute difference of neighbours, down plus across (Eq. 3)"
    return A.diff(dim=2).abs().mean()+A.diff(dim=3).abs().mean()

# %% ../nbs/papers/20_scale_attention.ipynb #a1fbdcbd
def equivariance(
    model, # `ScaleAttention`
    x, # float (B,3,H,W) in [0,1]
    A, # its attention
    view, # `View`
    symmetric:bool=False, # do both sides learn?
): # float ()
    "Mean squared difference of the attention and that of the turned image, turned back (Eq. 4)"
    if symmetric: return F.mse_loss(A, view.back(model.attention(view.to(x))))
    with torch.no_grad(): B = view.back(model.attention(view.to(x), running=True))
    return F.mse_loss(A, B)

# %% ../nbs/papers/20_scale_attention.ipynb #c8ceb5f8
class AttentionLosses(Callback):
    "Adds the smoothness and the equivariance loss to the scale loss (Eq. 5)"
    order,run_valid = -5,True
    def __init__(self,
        recipe, # `AttentionRecipe`
    ):
        self.r = recipe

    def before_fit(self): self.parts = dict(accuracy=[], smooth=[], equiv=[])

    def after_pred(self): self.learn.pred,self.A = self.pred

    def after_loss(self):
        if not self.training: return
        self.parts['accuracy'].append((self.pred.argmax(1)==self.y).float().mean())
        view = views[int(torch.randint(len(views), (1,)))]
        terms = dict(smooth=lambda: smoothness(self.A), equiv=lambda: equivariance(self.model, self.x, self.A, view, self.r.symmetric))
        for name,term in terms.items():
            if not (w := getattr(self.r, name)): continue
            value = term()
            self.learn.loss_grad = self.learn.loss_grad+w*value
            self.parts[name].append(value.detach())
        self.learn.loss = self.learn.loss_grad.clone()

# %% ../nbs/papers/20_scale_attention.ipynb #b50ce213
class AttentionDice(Metric):
    "Mean Dice of the thresholded attention on validation samples (Sec. 3.4); keeps the first map of each epoch"
    def __init__(self,
        samples, # list of `Sample`
        recipe, # `AttentionRecipe`
    ):
        self.samples,self.r,self.maps,self.scores = [(normalised(s.image, recipe),s.instances>0) for s in samples],recipe,[],None

    name = 'attention_dice'
    def reset(self): self.learn = None
    def accumulate(self, learn): self.learn = learn

    @property
    def value(self):
        with torch.no_grad(): maps = [attention_map(self.learn.model, img, replace(self.r, normalise=False, views=1)) for img,_ in self.samples]
        self.maps.append((maps[0]*255).astype(np.uint8))
        return float(np.mean([dice(m>self.r.threshold, t) for m,(_,t) in zip(maps, self.samples)]))

# %% ../nbs/papers/20_scale_attention.ipynb #c365d320
def _look(model, x, n):
    "Mean attention over the image and its first n-1 views"
    maps = [model.attention(x), *[v.back(model.attention(v.to(x))) for v in views[:n-1]]]
    return torch.stack(maps).mean(0)

@torch.no_grad()
def attention_map(
    model, # `ScaleAttention`, or anything with an `attention`
    image, # uint8 (H,W,3) at the largest magnification
    recipe, # `AttentionRecipe`
    side:int=1024, # side of the pieces of a large image, px
)->np.ndarray: # float32 (H,W) in [0,1]
    "The attention on an image, averaged over the recipe's views"
    training,dev,r = model.training,next(itertools.chain(model.parameters(), [torch.zeros(1)])).device,recipe
    model.eval()
    img,margin,(h,w) = normalised(image, r),sum(4*d for d in r.dilations)//2+2,image.shape[:2]
    res = np.zeros((h,w), np.float32)
    for y in range(0, h, side):
        for x in range(0, w, side):
            y0,x0 = max(y-margin, 0),max(x-margin, 0)
            piece = np.ascontiguousarray(img[y0:y+side+margin,x0:x+side+margin].transpose(2, 0, 1))
            A = _look(model, as_batch(piece[None], dev), r.views)[0,0].float().cpu().numpy()
            res[y:y+side,x:x+side] = A[y-y0:,x-x0:][:side,:side]
    model.train(training)
    return res

# %% ../nbs/papers/20_scale_attention.ipynb #c8cc34cf
def attention_learner(
    dls, # of `attention_dls`
    recipe, # `AttentionRecipe`
    valid=(), # list of `Sample` to select the epoch with; the last epoch is taken if empty
    folder=None, # where to keep a checkpoint and the best weights; none if not given
    cbs=None, # more callbacks
)->Learner:
    "A learner of `ScaleAttention` with the paper's losses and optimiser (Sec. 3.3 and 4.2)"
    r = recipe
    set_seed(r.seed)
    jitter = HEJitter(r.stain_jitter, 0.) if r.stain_jitter else None
    watch = [AttentionDice(valid, r)] if len(valid) else []
    cbs = [*L(cbs), DeviceAugment(jitter), AttentionLosses(r), Monitor(), StopOnNaN(), *speedups(dls.device)]
    if folder: cbs.append(Checkpoint(Path(folder)/'checkpoint', recipe=r))
    if folder and watch: cbs.append(SaveBest(Path(folder)/'best.safetensors', monitor=watch[0].name, comp=np.greater, recipe=r))
    opt = partial(Adam, mom=r.beta1, decouple_wd=False)
    return Learner(dls, ScaleAttention(r), loss_func=CrossEntropyLossFlat(), opt_func=opt, lr=r.lr, wd=r.wd, metrics=[batch_accuracy, *watch], cbs=cbs)

# %% ../nbs/papers/20_scale_attention.ipynb #5090403d
def attention_fit(
    learn, # of `attention_learner`
    recipe, # `AttentionRecipe`
)->Learner: # the same
    "Train as the recipe says; the rate is constant (Sec. 4.2). A training that goes on is not warmed up again"
    kept = getattr(learn, 'checkpoint', None)
    going_on = kept and kept.resume and kept.file.exists()
    if recipe.warm and not going_on: warm_up(learn, recipe)
    learn.fit(recipe.epochs)
    return learn

# %% ../nbs/papers/20_scale_attention.ipynb #9722f360
def attention_model(
    recipe, # `AttentionRecipe`
)->ScaleAttention:
    "The network of a recipe, not yet trained; what `load_model` fills"
    return ScaleAttention(replace(recipe, pretrained=False))

# %% ../nbs/papers/20_scale_attention.ipynb #d051b5e8
Nuclei = namedtuple('Nuclei', 'prob instances') # float (H,W) in [0,1]; int32 (H,W), 0 is background

def attention_watershed(
    recipe, # `AttentionRecipe`
)->Watershed:
    "The recipe's post-processing (Sec. 3.4)"
    r = recipe
    return Watershed(r.threshold, r.coarse, r.fine, r.sigma, r.peak)

def attention_predict(
    model, # `ScaleAttention`, or a Learner of one
    source, # uint8 (H,W,3) at the largest magnification, or a `Slide`
    recipe, # `AttentionRecipe`
    watershed=None, # `Watershed`; the recipe's if none
    box=None, # x, y, w, h: part of a slide, level-0 px; all of it if none
)->Nuclei:
    "The nuclei of an image, or of a part of a slide"
    if isinstance(source, Slide): source = slide_box(source, box, max(recipe.magnifications))
    prob = attention_map(getattr(model, 'model', model), source, recipe)
    return Nuclei(prob, watershed_instances(prob, watershed or attention_watershed(recipe)))

# %% ../nbs/papers/20_scale_attention.ipynb #4ac38f8e
def slide_box(
    slide, # `Slide`
    box, # x, y, w, h in level-0 px; the whole slide if none
    magnification, # wanted
    limit:int=100_000_000, # largest number of pixels
)->np.ndarray: # uint8 (H,W,3)
    "A part of a slide at a magnification; `DataError` if that is too much"
    x,y,w,h = box or (0, 0, *slide.dims)
    sx,sy = slide.scale(magnification=magnification)
    w,h = int(w/sx),int(h/sy)
    if w*h>limit: raise DataError(f'{w} x {h} px at {magnification}x are too many at once', slide.path, 'Pass a box, or use segment_image, which goes through a slide window by window')
    return slide.read(x, y, w, h, magnification=magnification)

# %% ../nbs/papers/20_scale_attention.ipynb #fdddd6ce
def attention_evaluate(
    predict, # function from uint8 (H,W,3) to an instance map (H,W), or a `ScaleAttention` or a Learner of one
    samples, # list of `Sample`
    recipe=None, # `AttentionRecipe`, for a model
    distances:bool=True, # also the scores with distances? They take longer
    watershed=None, # `Watershed`, for a model; the recipe's if none
)->pd.DataFrame: # a row per image
    "All scores of a method on samples"
    model = getattr(predict, 'model', predict)
    if hasattr(model, 'attention'): predict = lambda img: attention_predict(model, img, recipe, watershed).instances
    return method_scores(predict, samples, distances)

# %% ../nbs/papers/20_scale_attention.ipynb #df2e203e
def attention_auc(
    confidence, # float (H,W), any range
    truth, # bool or int (H,W), what should be found
)->float: # in [0,1]; 0.5 is chance, below it the map is a mirror image
    "Chance that a pixel of a nucleus has a higher confidence than one that is none"
    t = np.asarray(truth).ravel()>0
    if t.all() or not t.any(): raise DataError('the truth is all nucleus or none')
    return float(roc_auc_score(t, np.asarray(confidence).ravel()))

# %% ../nbs/papers/20_scale_attention.ipynb #c547f347
def haematoxylin(
    x, # float (B,3,H,W) in [0,1]
    smooth:int=5, # side of the square that is averaged, px
): # float (B,1,H,W), mean 0 and deviation 1 in each image
    "Amount of haematoxylin in each pixel, smoothed and standardised"
    inv = x.new_tensor(np.linalg.pinv(HE_MATRIX)[:,0])
    h = torch.einsum('bchw,c->bhw', -x.clamp_min(1/255).log(), inv)[:,None]
    h = F.avg_pool2d(h, smooth, 1, smooth//2, count_include_pad=False)
    return (h-h.mean((2,3), keepdim=True))/h.std((2,3), keepdim=True).clamp_min(1e-3)

# %% ../nbs/papers/20_scale_attention.ipynb #499e0f3d
def warm_up(
    learn, # of `attention_learner`
    recipe, # `AttentionRecipe`
):
    "For `warm` batches F learns the haematoxylin, for as many G learns the scale from what F shows (ours)"
    m,r = learn.model.to(learn.dls.device).train(),recipe
    def teach(part, loss, lr):
        opt,seen = torch.optim.Adam(part.parameters(), lr),(b for _ in range(r.warm) for b in learn.dls.train)
        for x,y in itertools.islice(seen, r.warm):
            loss(as_batch(x), y).backward()
            opt.step()
            opt.zero_grad()
    def scale_loss(x, y):
        with torch.no_grad(): A = m.attention(x)
        return F.cross_entropy(m.classify(x, A), y)
    teach(m.look, lambda x, y: F.mse_loss(m.look(x), haematoxylin(x)), r.warm_lr)
    teach(m.scale, scale_loss, r.lr)

# %% ../nbs/papers/20_scale_attention.ipynb #834325bf
def phantom_auc(
    name:str, # key of `variants` or `mends`
    seed:int, # of training
    tiles, # of `slide_tiles`
    samples, # list of `Sample`
)->float: # in [0,1]
    "AUC of the attention after a `tiny` training, kept in the ledger with its recipe; with another recipe it is measured anew"
    r,done = variant(name, AttentionRecipe.at('tiny', seed=seed)),ledger.results('scale_attention')
    done = done[(done.system==name)&(done.dataset=='phantom')&(done.metric=='auc')&(done.seed==seed)]
    same = [v for v,o in zip(done.value, done.get('recipe', [])) if o==json.loads(json.dumps(r.to_dict()))]
    if same: return same[-1]
    learn = attention_learner(attention_dls(tiles, r), r)
    with quiet(learn): attention_fit(learn, r)
    images = [normalised(s.image, r)[None] for s in samples]
    looked = [learn.model.eval().look(as_batch(i, learn.dls.device)).detach().cpu()[0,0] for i in images]
    auc = [attention_auc(a, s.instances) for a,s in zip(looked, samples)]
    ledger.save_result('scale_attention', name, 'phantom', 'test', 'auc', np.mean(auc), auc, 'tiny', seed, str(learn.dls.device), recipe=r.to_dict())
    return np.mean(auc)

# %% ../nbs/papers/20_scale_attention.ipynb #df0ef3dc
ledger_scores = dict(aji='aji', ahd='ahd', dice='adc', pq='pq', ahd_symmetric='ahd_symmetric') # column of `attention_evaluate` and its name in the ledger

# %% ../nbs/papers/20_scale_attention.ipynb #65f44ea4
small_grid = dict(threshold=(0.3,0.5), coarse=(1,2), sigma=(1.,2.), peak=(5,7,9)) # what is tried on validation images

def measure(
    system, # name of the system, for the ledger
    look, # function from uint8 (H,W,3) to a map (H,W) in [0,1]
    recipe, # its recipe
    sets, # dict of (data set, split): list of `Sample`; the post-processing is chosen on the first
    scale:str='small', # for the ledger
    params=None, # `Watershed` to begin with; the recipe's if none
    **more, # kept with the results
)->Watershed: # the one chosen
    "Choose the post-processing on the first set, measure on all, write into the ledger"
    params,start = params or attention_watershed(recipe),time.time()
    for n,((data,split),samples) in enumerate(sets.items()):
        probs,truths = [look(s.image) for s in samples],[s.instances for s in samples]
        if n==0: params,_ = tune_watershed(probs, truths, small_grid, params=params)
        auc = np.mean([attention_auc(p[::4,::4], t[::4,::4]) for p,t in zip(probs, truths)])
        table = instance_table(truths, (watershed_instances(p, params) for p in probs), [s.name for s in samples], True)
        scores = table[list(ledger_scores)].rename(columns=ledger_scores)
        save_scores(scores, 'scale_attention', system, data, split, scale=scale, seed=recipe.seed, recipe=recipe.to_dict(), auc=auc,
            watershed=params.to_dict(), seconds=time.time()-start, **more)
    return params

# %% ../nbs/papers/20_scale_attention.ipynb #8e0bb291
attention_done = partial(is_done, 'scale_attention', metric='ahd_symmetric') # system, sets -> bool

def attention_run(
    system:str, # name of the system, for the ledger
    recipe, # `AttentionRecipe`
    train, # list of `Sample`
    sets, # dict of (data set, split): list of `Sample`; the first chooses the epoch and the post-processing
    folder, # where checkpoints, weights and the maps of each epoch are kept
    scale:str='small', # for the ledger
    slides=(), # list of `Slide`, where the recipe's source is slides
)->Learner:
    "Train one system, choose on validation images, measure, write into the ledger"
    folder = out_folder(Path(folder)/system.replace(' ', '_'))
    valid = L(next(iter(sets.values()))).map(middle)
    tiles = attention_tiles(recipe, slides, train, folder/'tiles')
    learn = attention_learner(attention_dls(tiles, recipe), recipe, valid, folder)
    with quiet(learn, system): attention_fit(learn, recipe)
    with atomic_path(folder/'maps.npz') as p: np.savez_compressed(p, *learn.metrics[1].maps)
    measure(system, lambda img: attention_map(learn.model, img, recipe), recipe, sets, scale, device=str(learn.dls.device), started=learn.model.started,
        epochs=history(learn).round(4).to_dict('list'))
    return learn

# %% ../nbs/papers/20_scale_attention.ipynb #67541d55
@dataclass
class StainGuidedRecipe(AttentionRecipe):
    "Numbers of our extension; those it shares with the paper keep their names"
    normalise:bool = False # the strong jitter takes its place, and a window of a slide needs no statistics of its own
    look_at:int = 20 # magnification the network works at; its map is enlarged to 40x
    crop:int = 96 # side of the random crop at that magnification, px
    stain_jitter:float = 0.3 # haematoxylin and eosin times 1-x .. 1+x
    stain_shift:float = 0.05 # and -x .. x is added
    smoothing:float = 1.5 # Gaussian on the haematoxylin, px at 40x
    neighbourhood:float = 20. # Gaussian that is the neighbourhood, px at 40x
    vote:float = 0.3 # what the scale attention adds to the prior where it is 1, and takes where it is 0, deviations
    holes:int = 150 # smaller holes in a nucleus are filled, px at 40x
    least:int = 40 # smaller objects are no nuclei, px at 40x
    unsure:float = 0.3 # half width of the band that is not taught, deviations of the prior
    unsure_map:float = 0.2 # the same for maps in [0,1], in self-training
    rounds:int = 2 # trainings; the first on the prior, the others on the map of the one before
    lr:float = 3e-3 # the rate rises and falls once in a round
    batch_size:int = 24 # tiles a batch
    epochs:int = 20 # of each round
    views:int = 4 # averaged in prediction

StainGuidedRecipe._scales = dict(tiny=dict(crop=64, width=8, batches=20, epochs=2, views=1), small=dict(width=16, batches=60, epochs=5))

# %% ../nbs/papers/20_scale_attention.ipynb #59cde696
def stain_prior(
    image, # uint8 (H,W,3) at 40x
    recipe, # `StainGuidedRecipe`
)->np.ndarray: # float32 (H,W), in deviations; positive is rather nucleus
    "How much more haematoxylin than halfway between the neighbourhood and Otsu's threshold"
    h = ndi.gaussian_filter(rgb2hed(image)[...,0], recipe.smoothing)
    if np.ptp(h)<1e-6: return np.full(h.shape, -1, np.float32)
    margin = h-(threshold_otsu(h)+ndi.gaussian_filter(h, recipe.neighbourhood))/2
    return (margin/margin.std()).astype(np.float32)

def prior_nuclei(
    image, # uint8 (H,W,3) at 40x
    recipe=None, # `StainGuidedRecipe`
)->np.ndarray: # int32 (H,W)
    "The nuclei of the prior alone: a classical method"
    r = recipe or StainGuidedRecipe()
    return watershed_instances(fill_small(stain_prior(image, r)>0, r.holes), min_size=r.least)

# %% ../nbs/papers/20_scale_attention.ipynb #bb6ac810
def soft_labels(
    margin, # float (H,W), positive is rather nucleus
    unsure:float, # half width of the band that is not taught
    recipe, # `StainGuidedRecipe`
)->np.ndarray: # uint8 (H,W): 0 background, 1 nucleus, 255 not taught
    "Labels from a map, without what is not clear; lines between touching objects are background"
    objects = watershed_instances(fill_small(margin>0, recipe.holes), min_size=recipe.least)
    res = np.full(margin.shape, 255, np.uint8)
    res[margin<-unsure] = 0
    res[(objects>0)&((margin>unsure)|(margin<=0))] = 1
    other = np.where(objects>0, objects, objects.max()+1)
    res[(objects>0)&(ndi.minimum_filter(other, 3)!=ndi.maximum_filter(objects, 3))] = 0
    return res

# %% ../nbs/papers/20_scale_attention.ipynb #5e7ea093
class NucleusNet(AttentionNet):
    "The attention network as a segmentation network"
    def __init__(self,
        recipe, # `StainGuidedRecipe`
    ):
        super().__init__(recipe.width, recipe.dilations)

    def attention(self, x): return self(x).sigmoid() # float (B,3,H,W) in [0,1] to (B,1,H,W)

class LabelledTiles(ScaleTiles):
    "Random crops with their labels, which travel as a fourth channel"
    def __init__(self,
        images:list, # uint8 (H,W,3)
        labels:list, # uint8 (H,W), one an image
        recipe, # `StainGuidedRecipe`
        n:int, # items an epoch
    ):
        super().__init__({recipe.look_at:[np.dstack([i, l])[None] for i,l in zip(images, labels, strict=True)]}, recipe, n)

    def __getitem__(self, i):
        "A crop uint8 (3,S,S) and its labels uint8 (S,S)"
        t,_ = super().__getitem__(i)
        return t[:3],t[3]

# %% ../nbs/papers/20_scale_attention.ipynb #57cca00c
def taught_loss(
    a, # confidence, float (B,1,H,W)
    labels, # (B,H,W): 0, 1, or 255 for not taught
): # float ()
    "Binary cross-entropy where something is taught"
    known = (labels!=255).float()
    bce = F.binary_cross_entropy_with_logits(a[:,0].float(), (labels==1).float(), reduction='none')
    return (bce*known).sum()/known.sum().clamp(min=1)

# %% ../nbs/papers/20_scale_attention.ipynb #72209068
def guided_map(
    model, # `NucleusNet`
    image, # uint8 (H,W,3) at the largest magnification
    recipe, # `StainGuidedRecipe`
)->np.ndarray: # float32 (H,W) in [0,1]
    "The map of the network, found at the recipe's magnification, enlarged, small holes filled"
    k,(h,w) = round(max(recipe.magnifications)/recipe.look_at),image.shape[:2]
    img = np.pad(normalised(image, recipe), ((0,-h%k), (0,-w%k), (0,0)), 'edge')
    A = attention_map(model, shrink(img, k), replace(recipe, normalise=False))
    A = ndi.zoom(A, k, order=1, grid_mode=True, mode='nearest')[:h,:w].clip(0, 1)
    mask = A>recipe.threshold
    return np.where(fill_small(mask, recipe.holes)&~mask, 1, A).astype(np.float32)

def guided_predict(
    model, # `NucleusNet`
    image, # uint8 (H,W,3) at the largest magnification
    recipe, # `StainGuidedRecipe`
    watershed=None, # `Watershed`; the recipe's, without objects too small for a nucleus, if none
)->Nuclei:
    "The nuclei of an image"
    prob = guided_map(model, image, recipe)
    return Nuclei(prob, watershed_instances(prob, watershed or replace(attention_watershed(recipe), min_size=recipe.least)))

# %% ../nbs/papers/20_scale_attention.ipynb #404cf69b
def guided_margin(
    image, # uint8 (H,W,3) at 40x
    recipe, # `StainGuidedRecipe`
    teacher=None, # function from the image to a map in [0,1], such as the attention of the scale task
)->np.ndarray: # float32 (H,W), positive is rather nucleus
    "The prior, with the teacher's vote"
    m = stain_prior(image, recipe)
    return m if teacher is None else m+recipe.vote*(2*teacher(image)-1)

# %% ../nbs/papers/20_scale_attention.ipynb #618abe6b
def guided_round(
    images, # list of uint8 (H,W,3) at the magnification the network works at
    labels, # list of uint8 (H,W)
    recipe, # `StainGuidedRecipe`
    seed:int=0, # added to the recipe's
)->Learner:
    "One training on labels of which some are not taught"
    r,device = recipe,get_device()
    set_seed(r.seed+seed)
    loaders = [DataLoader(LabelledTiles(images, labels, r, r.batch_size*n), bs=r.batch_size, device=device) for n in (r.batches, 2)]
    cbs = [DeviceAugment(HEJitter(r.stain_jitter, r.stain_shift)), StopOnNaN()]
    learn = Learner(DataLoaders(*loaders, device=device), NucleusNet(r), taught_loss, opt_func=Adam, lr=r.lr, cbs=cbs)
    with quiet(learn, f'round {seed+1}'): learn.fit_one_cycle(r.epochs, r.lr)
    return learn

# %% ../nbs/papers/20_scale_attention.ipynb #b71d168e
def stain_guided_fit(
    samples, # list of `Sample`; their annotation is not looked at
    recipe, # `StainGuidedRecipe`
    teacher=None, # see `guided_margin`
    folder=None, # where finished rounds are kept
)->list: # `NucleusNet`, one a round
    "Prior, training, self-training"
    r,models,top = recipe,[],max(recipe.magnifications)
    images = [s.image for s in samples if s.mpp and 10/s.mpp>0.8*top]
    if not images: raise DataError(f'there is no image of {top}x', fix="The prior's lengths are those of the largest magnification")
    k,margins,unsure = round(top/r.look_at),[guided_margin(i, r, teacher) for i in images],r.unsure
    small = [shrink(normalised(i, r), k) for i in images]
    for n in range(r.rounds):
        file = folder and out_folder(folder)/f'round_{n}.safetensors'
        labels = [soft_labels(m, unsure, r)[k//2::k,k//2::k][:s.shape[0],:s.shape[1]] for m,s in zip(margins, small)]
        done = file and file.exists()
        model,kept = load_model(file, NucleusNet, StainGuidedRecipe) if done else (guided_round(small, labels, r, n).model,r)
        if kept!=r: raise DataError('this round was trained with another recipe', file, 'Choose another folder')
        model.to(get_device())
        if file and not done: save_model(model, file, r)
        models.append(model)
        if n<r.rounds-1: margins,unsure = [guided_map(model, i, r)-r.threshold for i in images],r.unsure_map
    return models

# %% ../nbs/papers/20_scale_attention.ipynb #8868bd87
def classical_map(
    foreground, # function from uint8 (H,W,3) to bool (H,W)
):
    "A foreground as a map in [0,1], for `measure`"
    return lambda img: foreground(img).astype(np.float32)

classical = {'Otsu on grey':grey_foreground, 'Otsu on haematoxylin':haematoxylin_foreground,
    'prior alone':lambda img: fill_small(stain_prior(img, StainGuidedRecipe())>0, StainGuidedRecipe.holes)}

# %% ../nbs/papers/20_scale_attention.ipynb #3ce59541
def nuclei_model(
    weights=None, # safetensors file of a `NucleusNet` with its recipe; those of the package if none
):
    "A function from uint8 (H,W,3) and its `mpp` to the instance map, int32 (H,W)"
    file = weights or Path(histolab_nb.__file__).parent/'data'/'nuclei.safetensors'
    model,r = load_model(file, NucleusNet, StainGuidedRecipe)
    model.to(get_device())
    def predict(image, mpp=0.25):
        if np.ptp(image)<8: return np.zeros(image.shape[:2], np.int32)
        size = [max(round(n*mpp*max(r.magnifications)/10), 1) for n in image.shape[:2]]
        same = size==list(image.shape[:2])
        found = guided_predict(model, image if same else np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR)), r).instances
        return found if same else np.asarray(Image.fromarray(found).resize(image.shape[1::-1], Image.NEAREST))
    return predict

# %% ../nbs/papers/20_scale_attention.ipynb #41fe9bcb
__all__ = [o for o in globals() if not o.startswith('_')] # all that the notebook uses, for `from histolab_nb.scale_attention import *`
