r"""Contrastive learning teaches a deep U-Net what tissue looks like, two clusters turn that into a tumour map, and a convolutional CRF draws its borders.

DCLR (Li et al.) segments tumour on whole slides without annotation, in four steps that this module offers one by one:

1. cut the slide into patches (`cut_patches`), leaving out the white background;
2. train a `DUNet` so that two distorted views of one patch get the same embedding and all others a different one (`NTXent`, `dclr_learner`);
3. group the embeddings into clusters (`PatchClusters`) and lay the patches back on the slide (`dclr_predict`);
4. smooth the map with a convolutional CRF that sees the colours of the slide.

`dclr_evaluate` puts the result beside the truth and beside what needs no learning at all. `dclr_tables` measures DCLR, SimCLR, MoCo, MoCo-v2 under one protocol on several data sets (`histolab-nb run dclr --tables`), and `dclr_grid` any row of it: supervised networks, other views, the ablations.

### The recipe

Every number of the method is a field of `DclrRecipe`. The paper leaves many out; those are marked with a star and their choice is argued in the chapter on what the paper leaves open.

### Patches

`cut_patches` reads the slide as a grid of patches, at the resolution the network sees, and drops those that are mostly background. Where a truth map is known each
patch gets the share of tumour in it and a label by the paper's rule: 1 if at least `share` of it is tumour, 0 if at least `share` is
not, and -1 (mixed) in between. The labels are for judging; training never sees them.

### Four methods, four sets of views

The paper compares DCLR with three methods that learn from two views, too. What they do besides is in *Where the negatives come from*; first their views. SimCLR, MoCo and MoCo-v2 were made for photographs, and their views say what does not matter in a photograph: how large a dog is (crops of 8 or 20 % to 100 % of the area, each
brought to one size), what colour it has, whether it looks left or right. `published` holds what the three papers, or the code that came with them, state, as changes of the recipe. (The blur reaches the same share of a view as SimCLR's 2 px do of 224.) `method_recipe` applies it, with the views
or without them: then only the method itself is exchanged.

DU-Net adds "an extra fully convolution layer" to the U-Net. The paper does not say where; the recipe puts it at the bottom (`extra` of them), and `depth` makes
the staircase deeper, which is the other reading of its name. The embedding is the average over a feature map: the one at the bottom, or the decoder's last
one (`pool`). If it is taken at the bottom, the climb up has no part in the loss and is not built.

### The projection head

The loss does not look at the embedding $h$ itself but at $z = W_2\,\sigma(W_1 h)$, a small network's view of it. After training the head is thrown away: it absorbs
what the game wants forgotten, and $h$ keeps more of what is useful.

### Where the negatives come from

What tells the methods apart, besides their views, is where the wrong answers come from. Each is a callback of a few lines that gives the learner its loss. For DCLR and `SimCLR` they are the other views of the batch: there is
nothing to add. `MoCo` keeps them from earlier batches, so that there can be many with a small batch. For this the old keys must still be comparable with the new ones. So a second network makes them, the *momentum encoder*: it gets no gradient, and
follows the first one slowly.

In validation all methods are asked the in-batch question. Even so, curves compare only where views and temperature are the same: easier views give a higher accuracy.

#### The learner

`dclr_learner` is a plain fastai `Learner`. The method is in two callbacks: one turns a batch into its two views, the other says where the negatives come from. Stochastic gradient
descent "with an adaptive learning rate" is fastai's `ReduceLROnPlateau`, and `EarlyStoppingCallback` watches the label-free accuracy.
With a `folder`, a checkpoint is kept, and the same call goes on where a killed run stopped.

### Clusters with names

`PatchClusters` keeps what k-means learnt in buffers, so that it lies in the same safe file of weights as the encoder. A cluster is a number; to score it, it needs a name. The Hungarian
method finds the naming that agrees best with the labels, *once for the whole data set* and on the training slides. With more clusters than classes each takes the name of the
majority in it. Without labels the clusters keep their numbers, the one whose patches hold most stain last.

### A linear probe

The paper does not say how the trained encoder became a classifier with 97 % accuracy. In SimCLR, which it follows, it is a *linear probe*: the encoder stays as it is, and
one linear layer learns from labelled patches. That is no longer unsupervised, but it tells what the embedding *knows*, whatever a clustering makes of it.

`dclr_predict` does all of it: tissue, patches, encoder, clusters, map, CRF. With a `folder` it goes on where it was killed.

### What every method is given

A `Task` is a data set as all methods see it: training samples, from which they learn without labels, and test samples. A sample is a slide with its truth and its patches, or patches alone.

### Three kinds of tissue

The paper's slides are private: basal cell carcinoma (BCC), squamous cell carcinoma (SCC), and what the authors call SKC. **They are not here, and nothing below is a result on them.** In their place stand three kinds of
phantom tissue with exact truth. They differ in what also differs among the three tumours: how large the cells are, and how they grow. The tumour is dyed with the colours of the normal tissue, yet how much of a patch is nucleus still differs, and colour statistics see some of that: the row "colour" will say how much.

### The recipe of a data set

`table_recipe` gives what a data set wants: the resolution, the size of patch and view, the CRF's window. At `small` the network is narrow and sees some three hundred batches, at `tiny` a few dozen; at `paper` it has the width
of a U-Net and ten times as many. Patch, view, queue and schedule are those of `small` at all scales, so `paper` is not the paper's own recipe, which is `DclrRecipe()`.

The learning rate was chosen for DCLR, the queue and its momentum for MoCo-v2 (with the views of DCLR), on phantom slides of the kind *nests* that are not used here (seeds 100 to 112). What is special to GlaS and IDC was chosen for DCLR with the labels of their training samples. So no row is unsupervised in the strictest sense.

### The data sets

`make_task` builds any of them by its name. Slides and pictures are written once, as small pyramids, into a folder, so that all rows read the same.

### Networks that are told the answer

The abstract says that unsupervised DCLR is "even better than some popular supervised networks", but no table has one. So here are two kinds, with the same encoder (the second adds the climb up) and the same number of epochs. The first learns to *classify patches* from the labels of the pure ones; an epoch is a little shorter, as mixed patches have no label. It goes through the
same augmentations and is the control for the paper's claim about them.

### A row of the tables

`dclr_systems` names everything that can stand in the tables, and how the recipe changes for it: the four methods as published; the same methods with the views of DCLR, so that only the method is exchanged; the networks that are told the answer; what needs no training;
and the ablations.

### Three tables from one command

`dclr_tables` runs what is missing and gives the paper's three tables, each twice: with the clusters as classifier, and with the linear probe, since the paper does not say which it used.

Docs: https://histolab-nb.github.io/histolab_nb/papers/dclr.html.md"""

# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/papers/10_dclr.ipynb.

# %% auto #0
__all__ = ['published', 'view_fields', 'phantom_looks', 'task_changes', 'tissue_kinds', 'view_ablations', 'number_ablations',
           'dclr_systems', 'ContrastRecipe', 'DclrRecipe', 'find_tissue', 'Patches', 'box_share', 'cut_patches',
           'join_patches', 'dclr_aug', 'method_recipe', 'conv_bn', 'DUNet', 'DCLR', 'NTXent', 'info_nce',
           'twin_accuracy', 'alignment', 'uniformity', 'spread', 'border_weights', 'dclr_dls', 'SimCLR', 'MoCo',
           'method_callback', 'dclr_learner', 'dclr_fit', 'embed', 'PatchClusters', 'neighbours', 'coherent_axes',
           'LinearProbe', 'dclr_model', 'block_map', 'true_map', 'dclr_crf', 'Segmentation', 'crf_map', 'patch_map',
           'dclr_predict', 'ColourFeatures', 'Constant', 'Chance', 'ColourThreshold', 'patch_canvas', 'known_map',
           'tumour_of', 'dclr_evaluate', 'summary', 'learn_crf', 'Task', 'table_recipe', 'slide_sample', 'phantom_task',
           'picture_samples', 'glas_task', 'read_idc', 'idc_task', 'queensland_task', 'make_task', 'labelled_learner',
           'told_learner', 'cut_map', 'pixel_dls', 'Outliner', 'outlines', 'outline_learner', 'system_kind',
           'system_recipe', 'features_of', 'system_models', 'save_row', 'dclr_row', 'row_folder', 'missing_rows',
           'dclr_grid', 'crf_variants', 'crf_row', 'row_parts', 'dclr_scores', 'dclr_board', 'dclr_boards',
           'data_sets_here', 'dclr_tables', 'plot_systems']

# %% ../nbs/papers/10_dclr.ipynb #068293d0
import functools, hashlib, json, math, multiprocessing, os, re, signal, threading, time, matplotlib.pyplot as plt
from concurrent import futures
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
import numpy as np, pandas as pd, torch
from fastai.basics import *
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import *
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau
from scipy import linalg, ndimage as ndi
from PIL import Image
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from . import ledger
from .core import *
from .ledger import *
from .slides import *
from .stain import *
from .metrics import *
from .plots import *
from .phantom import *
from .datasets import *
from .augment import *
from .postprocess import *
from .training import *
from .inference import *

# %% ../nbs/papers/10_dclr.ipynb #4eed40ad
@dataclass
class ContrastRecipe(Recipe):
    "The numbers of the views and of the contrastive loss; defaults are the paper's, a star marks what it leaves open"
    method:str = 'DCLR' # 'DCLR' or 'SimCLR': the batch holds the negatives; 'MoCo' or 'MoCo-v2': a queue does
    jitter:float = 0.6 # strength of the colour distortion (Sec. 2.1, strength *)
    jitter_p:float = 0.8 # chance that a view's colours are distorted *
    hue:float = 0.2 # range of the hue at strength 1, share of a full turn *
    grey:float = 0.2 # chance that a view loses its colour (Sec. 2.1, chance *)
    crop:tuple = (0.2,0.4) # area share of the random crop, from and to (Sec. 2.1, share *)
    view:int = 112 # side of a view, px; a crop is resized to it; 0 is the side of the patch *
    blur:bool = True # Gaussian blur (Sec. 2.1)
    cutout:bool = True # cutout (Sec. 2.1)
    sobel:bool = False # Sobel filtering, named in Sec. 2.1, not in Fig. 2
    flip:bool = True # flips (Fig. 2)
    upright:bool = False # mirror left to right only, as photographs are?
    head:str = 'mlp' # projection head: 'mlp' with one hidden layer (Sec. 2.2), or 'linear'
    hidden:int = 128 # width of the projection head's hidden layer; 0 is that of the embedding *
    out:int = 128 # width of its output *
    tau:float = 0.2 # temperature of the contrastive loss, Eq. 2 (value *)
    queue:int = 65536 # keys that MoCo keeps (He et al. 2020)
    key_momentum:float = 0.999 # how much of itself MoCo's key encoder keeps at a step (He et al. 2020)
    bn_groups:int = 2 # parts of a shuffled batch whose keys are computed apart, MoCo's shuffled batch norm on one device *

# %% ../nbs/papers/10_dclr.ipynb #48b5530c
@dataclass
class DclrRecipe(ContrastRecipe):
    "Every number of DCLR; defaults are the paper's, a star marks what it leaves open"
    mpp:float = 0.5 # resolution of the patches, um/px *
    patch:int = 512 # side of a patch at `mpp`, px (Sec. 3.2)
    stride:int = 512 # from one patch to the next in training at `mpp`, px *
    predict_stride:int = 512 # from one patch to the next on the map at `mpp`, px (Sec. 3.4)
    input:int = 224 # side of a patch as the network sees it, px *
    share:float = 0.75 # part of a patch that must carry one label (Sec. 3.2)
    background:str = 'otsu' # how white is told from tissue: 'otsu', 'hsv', or 'none' where all is tissue (Sec. 3.2)
    min_tissue:float = 0.5 # part of a patch that must not be background *
    width:int = 64 # channels of the first level of the DU-Net *
    depth:int = 4 # levels below the first *
    extra:int = 1 # additional fully convolutional layers (Sec. 1, place *)
    pool:str = 'bottleneck' # where the embedding is pooled, 'bottleneck' or 'decoder' *
    batch_size:int = 64 # patches a batch, two views each (Sec. 3.3)
    lr:float = 0.001 # learning rate (Sec. 3.3)
    momentum:float = 0.9 # of SGD *
    wd:float = 1e-4 # weight decay *
    schedule:str = 'plateau' # the rate falls when the loss is flat ('plateau'), or rises and falls once ('one_cycle')
    epochs:int = 200 # at most *
    patience:int = 20 # epochs without gain before training stops (Sec. 3.3)
    valid:float = 0.15 # part of the patches kept for validation *
    clusters:int = 2 # groups the embeddings are divided into *
    coherent:int = 0 # directions to look at, those in which neighbouring patches agree most; 0 looks at all *
    certainty:float = 0.8 # probability given to the cluster a patch fell into *
    map_mpp:float = 8. # resolution of the map that the CRF works on, um/px *
    crf_filter:int = 11 # side of the CRF's window on the coarse grid, px *
    crf_blur:int = 4 # the CRF's grid is this much coarser than the map *
    crf_iterations:int = 5 # mean-field steps *
    crf_theta:float = 3. # scale of its position kernel, px of the map *
    crf_colour:float = 10. # weight of its colour kernel; that of the position kernel is 3 *
    crf_mix:float = 0.2 # share of the neighbours against the patch's own word *
    crf_mean:bool = False # do neighbours speak with their mean, or with their sum? *
    w0:float = 10. # height of the border weights, Eq. 1 (Sec. 2.2)
    sigma:float = 5. # width of the border weights, Eq. 1, px (Sec. 2.2)
    seed:int = 42 # of everything random
    side:int = 8192 # side of the phantom slides, px at `mpp`

# %% ../nbs/papers/10_dclr.ipynb #393521c7
DclrRecipe._scales = dict(tiny=dict(width=8, predict_stride=128, epochs=20, side=3072), small=dict(width=16, predict_stride=64, epochs=40, side=4096))
for o in DclrRecipe._scales.values():
    o |= dict(patch=128, stride=64, input=128, view=64, crop=(0.2,0.35), cutout=False, queue=1024, key_momentum=0.99, lr=0.06, schedule='one_cycle')
    o |= dict(coherent=4, crf_filter=21, crf_blur=1, crf_theta=6., crf_colour=0.3, crf_mix=0.7, crf_mean=True)

# %% ../nbs/papers/10_dclr.ipynb #f0033577
def find_tissue(
    slide, # `Slide`
    recipe, # `DclrRecipe`
)->np.ndarray: # bool (H,W) over the whole slide
    "Where there is tissue, by the recipe's method (Sec. 3.2)"
    return np.ones((2,2), bool) if recipe.background=='none' else tissue_mask(slide, method=recipe.background)

# %% ../nbs/papers/10_dclr.ipynb #4d1d2066
@dataclass
class Patches:
    "Patches of slides with their places and, where the truth is known, their labels"
    images:np.ndarray # uint8 (N,S,S,3)
    table:pd.DataFrame # a row a patch: x, y, w0, h0 in level-0 px, tissue, share and label of the truth, slide
    def __len__(self): return len(self.images)
    def __getitem__(self, i): return Patches(self.images[i], self.table.iloc[i].reset_index(drop=True))

    @property
    def labels(self): return self.table.label.to_numpy()

def box_share(
    mask, # bool (H,W), a map of the whole slide at any resolution
    table, # x, y, w0, h0 in level-0 px
    dims, # (width, height) of the slide, level-0 px
)->np.ndarray: # float (N,), 0 to 1
    "Share of each box that the mask covers"
    h,w = mask.shape
    s = np.pad(mask.astype(float).cumsum(0).cumsum(1), ((1,0),(1,0)))
    edge = lambda v, n, full: np.clip(np.rint(np.asarray(v)*n/full).astype(int), 0, n)
    x0,x1 = edge(table.x, w, dims[0]),edge(table.x+table.w0, w, dims[0])
    y0,y1 = edge(table.y, h, dims[1]),edge(table.y+table.h0, h, dims[1])
    return (s[y1,x1]-s[y0,x1]-s[y1,x0]+s[y0,x0])/np.maximum((y1-y0)*(x1-x0), 1)

# %% ../nbs/papers/10_dclr.ipynb #397bf536
def cut_patches(
    slide, # `Slide`
    recipe, # `DclrRecipe`
    truth=None, # bool (H,W), tumour over the whole slide at any resolution; if none, the labels are -1
    stride:int|None=None, # from patch to patch at `recipe.mpp`, px; the recipe's if none
    progress:bool=True, # show a bar
)->Patches:
    "The patches of a slide, without background, as the network sees them; `DataError` if there are none"
    r,k = recipe,recipe.input/recipe.patch
    table = tile_table(slide, r.input, mpp=r.mpp/k, overlap=r.input-round((stride or r.stride)*k), min_tissue=r.min_tissue,
        mask=find_tissue(slide, r))
    table['slide'] = Path(slide.path).stem
    table['share'] = box_share(truth, table, slide.dims) if truth is not None else np.nan
    table['label'] = np.select([table.share>=r.share, table.share<=1-r.share], [1, 0], -1)
    images = np.concatenate([x for x,_ in read_tiles(table, slide=slide, progress=progress)])
    return Patches(images, table)

# %% ../nbs/papers/10_dclr.ipynb #cf999053
def join_patches(
    parts, # list of `Patches`
)->Patches:
    "The patches of all slides as one"
    return Patches(np.concatenate([p.images for p in parts]), pd.concat([p.table for p in parts], ignore_index=True))

# %% ../nbs/papers/10_dclr.ipynb #adcfcead
def dclr_aug(
    recipe, # `DclrRecipe`
)->nn.Module: # float (B,3,H,W) in [0,1] to float (2B,3,H,W); views i and i+B belong together
    "The two-view augmentation of Sec. 2.1 and Fig. 2"
    r = recipe
    steps = contrastive_aug(r.view or r.input, crop=r.crop[0]<1, scale=r.crop, flip=r.flip, upright=r.upright, jitter=r.jitter, jitter_p=r.jitter_p,
        hue=r.hue, grey=r.grey, blur=r.blur, sobel=r.sobel, cutout=r.cutout)
    return TwoViews(steps)

# %% ../nbs/papers/10_dclr.ipynb #64d44000
published = dict( # what the papers of the methods, or their code, state, as changes of the recipe
    DCLR=dict(),
    SimCLR=dict(crop=(0.08,1.), jitter=1., jitter_p=0.8, hue=0.2, grey=0.2, blur=True, upright=True, cutout=False, sobel=False, hidden=0, tau=0.1),
    MoCo=dict(crop=(0.2,1.), jitter=0.5, jitter_p=1., hue=0.8, grey=0.2, blur=False, upright=True, cutout=False, sobel=False, head='linear', tau=0.07))
published['MoCo-v2'] = published['MoCo'] | dict(jitter_p=0.8, hue=0.2, blur=True, head='mlp', hidden=0, tau=0.2)
view_fields = 'crop','jitter','jitter_p','hue','grey','blur','upright','cutout','sobel'

def method_recipe(
    method:str, # one of `published`
    recipe, # `DclrRecipe`
    views:bool=True, # with the views of the method, or those of the recipe?
)->DclrRecipe:
    "The recipe of a method"
    if method not in published: raise DataError(f'there is no method {method!r}', fix=f'Choose one of {", ".join(published)}')
    return replace(recipe, method=method, **{k:v for k,v in published[method].items() if views or k not in view_fields})

# %% ../nbs/papers/10_dclr.ipynb #bfe9af79
def conv_bn(
    ni:int, # channels in
    no:int, # channels out
    n:int=2, # convolutions
)->nn.Sequential: # (B,ni,H,W) to (B,no,H,W)
    "`n` times: 3x3 convolution, batch norm, ReLU"
    return nn.Sequential(*[m for i in range(n) for m in (nn.Conv2d(no if i else ni, no, 3, padding=1, bias=False), nn.BatchNorm2d(no), nn.ReLU(inplace=True))])

# %% ../nbs/papers/10_dclr.ipynb #21ed0535
class DUNet(nn.Module):
    "A U-Net with extra convolutions at the bottom; its output is a pooled embedding (Sec. 2.2)"
    def __init__(self,
        width:int=64, # channels of the first level; doubled at every level
        depth:int=4, # levels below the first
        extra:int=1, # additional convolutions at the bottom
        pool:str='bottleneck', # average the 'bottleneck' or the 'decoder' map
    ):
        super().__init__()
        if pool not in ('bottleneck', 'decoder'): raise DataError(f'there is no pooling {pool!r}', fix="Use 'bottleneck' or 'decoder'")
        chs = [width*2**i for i in range(depth+1)]
        self.down = nn.ModuleList([conv_bn(ni, no) for ni,no in zip([3, *chs], chs)])
        self.extra = conv_bn(chs[-1], chs[-1], extra)
        steps = list(zip(chs[:0:-1], chs[-2::-1])) if pool=='decoder' else []
        self.up = nn.ModuleList([nn.ConvTranspose2d(ni, no, 2, 2) for ni,no in steps])
        self.dec = nn.ModuleList([conv_bn(2*no, no) for _,no in steps])
        self.d = chs[0] if steps else chs[-1]
        self.register_buffer('mean', torch.tensor([0.70,0.55,0.67])[:,None,None])
        self.register_buffer('std', torch.tensor([0.20,0.22,0.18])[:,None,None])

# %% ../nbs/papers/10_dclr.ipynb #7f801160
@patch
def maps(self:DUNet,
    x, # float (B,3,H,W) in [0,1]; sides are multiples of 2**depth
): # float (B,d,h,w)
    "The feature map that the embedding is the average of"
    x,skips = (x-self.mean)/self.std,[]
    for i,level in enumerate(self.down):
        x = level(F.max_pool2d(x, 2) if i else x)
        skips.append(x)
    x = self.extra(x)
    for up,dec,skip in zip(self.up, self.dec, skips[-2::-1]): x = dec(torch.cat([up(x), skip], 1))
    return x

@patch
def forward(self:DUNet, x):
    "The embedding h, float (B,d)"
    return self.maps(x).mean((2,3))

# %% ../nbs/papers/10_dclr.ipynb #d8d931a5
class DCLR(nn.Module):
    "Encoder and projection head: z = W2 relu(W1 h) (Sec. 2.2)"
    def __init__(self,
        recipe, # `DclrRecipe`
    ):
        super().__init__()
        r = recipe
        self.encoder = DUNet(r.width, r.depth, r.extra, r.pool)
        d,n = self.encoder.d,r.hidden or self.encoder.d
        self.head = nn.Sequential(nn.Linear(d, n), nn.ReLU(), nn.Linear(n, r.out)) if r.head=='mlp' else nn.Linear(d, r.out)

    def forward(self, x): return self.head(self.encoder(x))

# %% ../nbs/papers/10_dclr.ipynb #51098750
class NTXent(nn.Module):
    "Normalised temperature-scaled cross-entropy over the 2N views of a batch, both directions (Eq. 2, denominator corrected)"
    def __init__(self,
        tau:float=0.2, # temperature; smaller looks only at the hardest negatives
    ):
        super().__init__()
        self.tau = tau

    def forward(self,
        z, # float (2N,d); rows i and i+N are a positive pair
        *_, # labels, ignored
    ): # scalar
        z = F.normalize(z.float(), dim=1)
        s = (z@z.T/self.tau).fill_diagonal_(-torch.inf)
        twin = torch.arange(len(z), device=z.device).roll(len(z)//2)
        return F.cross_entropy(s, twin)

# %% ../nbs/papers/10_dclr.ipynb #02c8a4dc
def info_nce(
    q, # queries, float (N,d)
    keys, # their keys, float (N,d), of length 1
    queue, # keys of others, float (K,d), of length 1
    tau:float=0.07, # temperature
): # scalar
    "Cross-entropy of finding the key of each query among all of the queue (He et al. 2020, Eq. 1)"
    q = F.normalize(q.float(), dim=1)
    s = torch.cat([(q*keys).sum(1, keepdim=True), q@queue.T], 1)/tau
    return F.cross_entropy(s, torch.zeros(len(q), dtype=torch.long, device=q.device))

# %% ../nbs/papers/10_dclr.ipynb #8279b9d1
def twin_accuracy(
    z, # float (2N,d); rows i and i+N are a positive pair
    *_, # labels, ignored
): # scalar, 0 to 1; chance is 1/(2N-1)
    "How often the most similar other view is the twin"
    z = F.normalize(z.float(), dim=1)
    best = (z@z.T).fill_diagonal_(-torch.inf).argmax(1)
    return (best==torch.arange(len(z), device=z.device).roll(len(z)//2)).float().mean()

# %% ../nbs/papers/10_dclr.ipynb #0ef45ad7
def alignment(
    z, # float (2N,d); rows i and i+N are a positive pair
    *_, # labels, ignored
): # scalar, 0 to 4
    "Mean squared distance of the twins on the sphere"
    a,b = F.normalize(z.float(), dim=1).chunk(2)
    return (a-b).square().sum(1).mean()

def uniformity(z, *_): # scalar, at most 0
    "Logarithm of the mean of exp(-2 d^2) over the pairs of one view of each patch"
    a,_ = F.normalize(z.float(), dim=1).chunk(2)
    return torch.pdist(a).square().mul(-2).exp().mean().log()

def spread(z, *_): # scalar, about 0 to 1
    "Standard deviation of the normalised embedding, times the root of its width"
    z = F.normalize(z.float(), dim=1)
    return z.std(0).mean()*z.shape[1]**0.5

# %% ../nbs/papers/10_dclr.ipynb #e33054fd
def border_weights(
    instances, # int (H,W), 0 is background
    w0:float=10., # height
    sigma:float=5., # width, px
)->np.ndarray: # float32 (H,W)
    "The pixel weights of Eq. 1: class balance plus extra weight between close neighbours"
    fg = instances>0
    w_c = np.where(fg, 0.5/max(fg.mean(), 1e-6), 0.5/max(1-fg.mean(), 1e-6))
    near = np.full((2, *instances.shape), np.inf, np.float32)
    pad = int(np.ceil(4*sigma)) # further out the exponential is below 4e-4
    for i,box in enumerate(ndi.find_objects(instances), 1):
        if box is None: continue
        win = tuple(slice(max(s.start-pad, 0), s.stop+pad) for s in box)
        d = ndi.distance_transform_edt(instances[win]!=i)
        near[(slice(None), *win)] = np.sort(np.stack([*near[(slice(None), *win)], d]), 0)[:2]
    return (w_c + np.where(fg, 0, w0*np.exp(-near.sum(0)**2/(2*sigma**2)))).astype(np.float32)

# %% ../nbs/papers/10_dclr.ipynb #a0fdf331
class _Items:
    "Patches as single items: uint8 (3,S,S) and label"
    def __init__(self, patches, idxs): self.patches,self.idxs = patches,idxs
    def __len__(self): return len(self.idxs)
    def __getitem__(self, i):
        j = self.idxs[i]
        return torch.from_numpy(self.patches.images[j]).permute(2,0,1),int(self.patches.labels[j])

def _as_float(b): return b[0].float()/255,b[1]

def dclr_dls(
    source, # `Patches`
    recipe, # `DclrRecipe`
    device=None, # the best there is, if none
)->DataLoaders: # batches of float (B,3,S,S) in [0,1] and labels (B,), which training ignores
    "Training and validation batches of patches; `DataError` if there are too few"
    set_seed(recipe.seed)
    n,bs = len(source),recipe.batch_size
    n_valid = max(round(n*recipe.valid), 2)
    if n-n_valid<8: raise DataError(f'{n} patches are too few to learn from', fix='Use a smaller patch or stride, or more slides')
    idxs = np.random.default_rng(recipe.seed).permutation(n)
    parts = [idxs[n_valid:], idxs[:n_valid]]
    dls = [DataLoader(_Items(source, p), bs=min(bs, len(p)), shuffle=i==0, drop_last=True, after_batch=_as_float, device=device or get_device())
        for i,p in enumerate(parts)]
    return DataLoaders(*dls, device=device or get_device())

# %% ../nbs/papers/10_dclr.ipynb #82e97aba
class SimCLR(Callback):
    "The other views of the batch are the negatives (Chen et al. 2020, and DCLR)"
    def __init__(self,
        recipe, # `DclrRecipe`
    ): self.in_batch = NTXent(recipe.tau)

    def before_fit(self): self.learn.loss_func = self.in_batch

class MoCo(PlainErrors):
    "Keys of earlier batches, made by an encoder that follows slowly, are the negatives (He et al. 2020)"
    order = MixedPrecision.order+1 # after the views are made, and in the precision of the queries
    def __init__(self,
        recipe, # `DclrRecipe`
    ):
        r = recipe
        self.size,self.width,self.m,self.groups,self.tau,self.in_batch = r.queue,r.out,r.key_momentum,r.bn_groups,r.tau,NTXent(r.tau)

    def before_fit(self):
        self.learn.loss_func = self.contrast
        if self.learn.lock.locked(): return # fastai holds the lock while it only validates
        self.key,self.at = deepcopy(self.model).requires_grad_(False).train(),0
        self.queue = F.normalize(torch.randn(self.size, self.width, device=self.dls.device), dim=1)

    def contrast(self, z, *_): return info_nce(z, self.keys, self.queue, self.tau) if self.training else self.in_batch(z)

# %% ../nbs/papers/10_dclr.ipynb #76598972
@patch
@torch.no_grad()
def follow(self:MoCo):
    "One step of the momentum encoder: m times itself plus 1-m times the trained one"
    for k,q in zip(self.key.parameters(), self.model.parameters()): k.lerp_(q, 1-self.m)

@patch
def push(self:MoCo,
    keys, # float (N,d), of length 1
):
    "The newest keys take the places of the oldest"
    self.queue[torch.arange(self.at, self.at+len(keys), device=keys.device)%self.size] = keys
    self.at = (self.at+len(keys))%self.size

# %% ../nbs/papers/10_dclr.ipynb #ffaef46f
@patch
@torch.no_grad()
def make_keys(self:MoCo,
    x, # second views, float (N,3,H,W)
)->torch.Tensor: # float (N,d), of length 1
    "Keys of the momentum encoder, in parts of a shuffled batch"
    order = torch.randperm(len(x), device=x.device)
    z = torch.cat([self.key(o) for o in x[order].chunk(self.groups)])
    return F.normalize(z[order.argsort()].float(), dim=1)

@patch
def before_batch(self:MoCo):
    if not self.training: return
    if len(self.x)//2>self.size: raise DataError(f'a queue of {self.size} keys is shorter than a batch of {len(self.x)//2}', fix='Use a longer queue')
    queries,keys = self.x.chunk(2)
    self.follow()
    self.keys,self.learn.xb = self.make_keys(keys),(queries,)

@patch
def after_batch(self:MoCo):
    if self.training: self.push(self.keys)

# %% ../nbs/papers/10_dclr.ipynb #ad796bd1
def method_callback(
    recipe, # `DclrRecipe`
)->Callback:
    "The callback of the recipe's method"
    found = {'DCLR':SimCLR, 'SimCLR':SimCLR, 'MoCo':MoCo, 'MoCo-v2':MoCo}
    if recipe.method not in found: raise DataError(f'there is no method {recipe.method!r}', fix=f'Choose one of {", ".join(found)}')
    return found[recipe.method](recipe)

# %% ../nbs/papers/10_dclr.ipynb #2cadc87a
def dclr_learner(
    dls, # of `dclr_dls`
    recipe, # `DclrRecipe`
    folder=None, # where to keep a checkpoint; none if not given
    cbs=None, # more callbacks
)->Learner:
    "A learner that trains `DCLR` by contrast, with the method of the recipe (Sec. 2.2 and 3.3)"
    r = recipe
    set_seed(r.seed)
    cbs = [*L(cbs), DeviceAugment(dclr_aug(r), valid=True), method_callback(r), Monitor(), StopOnNaN(), *(speedups(dls.device) or [ChannelsLast()])]
    watch = [twin_accuracy, alignment, uniformity, spread]
    if r.schedule=='plateau': cbs += [ReduceLROnPlateau(monitor='valid_loss', patience=max(r.patience//4, 2), factor=3),
        EarlyStoppingCallback(monitor='twin_accuracy', patience=r.patience)]
    if folder: cbs.append(Checkpoint(folder, recipe=r))
    return Learner(dls, DCLR(r), loss_func=noop, opt_func=partial(SGD, mom=r.momentum), lr=r.lr, wd=r.wd, metrics=watch, cbs=cbs)

def dclr_fit(
    learn, # of `dclr_learner`
    recipe, # `DclrRecipe`
):
    "Train by the recipe's schedule"
    return learn.fit(recipe.epochs) if recipe.schedule=='plateau' else learn.fit_one_cycle(recipe.epochs, recipe.lr)

# %% ../nbs/papers/10_dclr.ipynb #eb8b4716
@torch.no_grad()
def embed(
    encoder, # module from float (B,3,S,S) to (B,d)
    patches, # `Patches`
    batch_size:int=128, # patches at once
)->np.ndarray: # float32 (N,d)
    "The embeddings h of patches"
    encoder.eval()
    dev = next(chain(encoder.parameters(), encoder.buffers(), [torch.zeros(1)])).device
    to = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(dev).permute(0,3,1,2)/255
    return torch.cat([encoder(to(x)).float().cpu() for x in np.array_split(patches.images, max(1, -(-len(patches)//batch_size)))]).numpy()

# %% ../nbs/papers/10_dclr.ipynb #ff350189
class PatchClusters(nn.Module):
    "K-means on embeddings; gives every patch a probability per class"
    def __init__(self,
        d:int, # dimensions of the embedding
        k:int=2, # clusters
        n_classes:int=2, # classes the clusters stand for
        certainty:float=0.8, # probability of the class of the nearest cluster; the rest is shared by the others
        coherent:int=0, # directions to look at, those in which neighbours agree most; 0 looks at all, standardised
    ):
        super().__init__()
        self.certainty,self.n_classes,self.coherent = certainty,n_classes,coherent
        n = coherent or d
        start = dict(mean=torch.zeros(d), axes=torch.eye(d)[:,:n], centres=torch.zeros(k, n), names=torch.arange(k)%n_classes)
        for name,t in start.items(): self.register_buffer(name, t)

    def project(self, h): return (h.float()-self.mean)@self.axes

@patch
def forward(self:PatchClusters,
    h, # float (B,d)
): # float (B,n_classes)
    "Probability of every class"
    near = torch.cdist(self.project(h), self.centres).argmin(1)
    rest = (1-self.certainty)/max(self.n_classes-1, 1)
    return F.one_hot(self.names[near], self.n_classes)*(self.certainty-rest)+rest

# %% ../nbs/papers/10_dclr.ipynb #f30a8bd1
def neighbours(
    table, # of `Patches`
)->np.ndarray: # int (M,2), rows of the table
    "Pairs of patches that touch, side by side or one above the other, without overlap"
    res = [np.zeros((0,2), int)]
    for _,t in table.reset_index(drop=True).groupby('slide'):
        xy,side = t[['x','y']].to_numpy(float),t.w0.iloc[0]
        tree = cKDTree(xy)
        for shift in ((side,0), (0,side)):
            d,j = tree.query(xy+shift, distance_upper_bound=side/8)
            ok = np.isfinite(d)
            res.append(np.c_[t.index[ok], t.index[j[ok]]])
    return np.concatenate(res)

# %% ../nbs/papers/10_dclr.ipynb #f89a9449
def coherent_axes(
    h:np.ndarray, # embeddings (N,d)
    pairs:np.ndarray, # of `neighbours`
    n:int, # directions wanted
)->np.ndarray: # float32 (d,n)
    "The directions in which neighbours differ least, each scaled to unit variance (min/max autocorrelation factors)"
    if len(pairs)<n: raise DataError(f'there are {len(pairs)} pairs of touching patches, too few', fix='Use a smaller patch or stride, or coherent=0')
    h = h.astype(float)
    total,diff = np.cov(h.T),h[pairs[:,0]]-h[pairs[:,1]]
    total += np.eye(len(total))*1e-3*np.trace(total)/len(total)
    return linalg.eigh(diff.T@diff/len(diff), total)[1][:,:n].astype(np.float32)

# %% ../nbs/papers/10_dclr.ipynb #5bc13802
@patch
def fit(self:PatchClusters,
    h:np.ndarray, # embeddings (N,d)
    table=None, # of `Patches`; its labels, where known, name the clusters, its places make neighbours
    order=None, # (N,) numbers; the clusters are sorted by their mean
    seed:int=42, # of k-means
):
    "Find the clusters, then name them"
    k,labels = len(self.centres),np.full(len(h), -1) if table is None else table.label.to_numpy()
    axes = coherent_axes(h, neighbours(table), self.coherent) if self.coherent else np.diag(1/(h.std(0)+1e-6))
    self.mean,self.axes = torch.tensor(h.mean(0)),torch.tensor(axes, dtype=torch.float32)
    km = KMeans(k, n_init=10, random_state=seed).fit((h-h.mean(0))@axes)
    rank = np.argsort(np.arange(k) if order is None else [np.mean(np.asarray(order)[km.labels_==i]) for i in range(k)])
    self.centres,known = torch.tensor(km.cluster_centers_[rank], dtype=torch.float32),labels>=0
    if known.any(): self.names = torch.from_numpy(match_clusters(np.argsort(rank)[km.labels_[known]], labels[known], self.n_classes, k))
    return self

# %% ../nbs/papers/10_dclr.ipynb #c76d9886
class LinearProbe(nn.Module):
    "One linear layer on a frozen embedding, trained on labelled patches"
    def __init__(self,
        d:int, # dimensions of the embedding
        n_classes:int=2, # classes
    ):
        super().__init__()
        self.lin = nn.Linear(d, n_classes)

    def fit(self,
        h:np.ndarray, # embeddings (N,d)
        table, # of `Patches`; only patches with a label count
        C:float=0.1, # inverse strength of the regularisation
    ):
        "Logistic regression on standardised embeddings, folded into one layer"
        ok = table.label.to_numpy()>=0
        if table.label[ok].nunique()<2: raise DataError('there are no patches with a label, or only one kind of label', fix='A probe learns from tumour and from other tissue: check the truth, or use more slides')
        mean,std = h[ok].mean(0),h[ok].std(0)+1e-6
        lr = LogisticRegression(C=C, max_iter=1000).fit((h[ok]-mean)/std, table.label[ok])
        w = lr.coef_/std
        b = lr.intercept_-w@mean
        self.lin.weight.data,self.lin.bias.data = (torch.tensor(np.r_[-o, o], dtype=torch.float32) for o in (w/2, b/2))
        return self

    def forward(self, h): return self.lin(h.float()).softmax(1)

# %% ../nbs/papers/10_dclr.ipynb #3c146d5b
def dclr_model(
    recipe, # `DclrRecipe`
)->nn.Sequential: # float (B,3,S,S) to (B,classes)
    "Encoder and clusters, not yet trained; what `load_model` fills"
    enc = DUNet(recipe.width, recipe.depth, recipe.extra, recipe.pool)
    return nn.Sequential(enc, PatchClusters(enc.d, recipe.clusters, certainty=recipe.certainty, coherent=recipe.coherent))

# %% ../nbs/papers/10_dclr.ipynb #5ceb6b22
def block_map(
    m, # `SlideMap`
    mpp:float, # um/px wanted, finer than the map's
)->SlideMap:
    "The same map with more pixels and the same blocks: nothing is smoothed"
    f = mpp/m.mpp
    w,h = (int(np.ceil(d/(s*f)-1e-6)) for d,s in zip(m.dims, m.scale_xy))
    y,x = (np.minimum(((np.arange(n)+0.5)*f).astype(int), k-1) for n,k in zip((h,w), m.prob.shape[1:]))
    return SlideMap(m.prob[:,y[:,None],x], tuple(s*f for s in m.scale_xy), m.dims, m.slide_mpp, m.slide, m.names)

# %% ../nbs/papers/10_dclr.ipynb #d2783ea7
def true_map(
    truth, # bool (H,W) over the whole slide
    m, # `SlideMap`
)->np.ndarray: # bool, of the map's size
    "The truth at the resolution of a map"
    h,w = m.prob.shape[1:]
    y,x = (np.minimum(((np.arange(n)+0.5)*k/n).astype(int), k-1) for n,k in zip((h,w), truth.shape))
    return truth[y[:,None],x]

# %% ../nbs/papers/10_dclr.ipynb #353321e9
def dclr_crf(
    recipe, # `DclrRecipe`
    n_classes:int=2, # channels of the map
)->ConvCRF:
    "The convolutional CRF of Sec. 2.3 with the recipe's numbers"
    r = recipe
    return ConvCRF(n_classes, r.crf_filter, r.crf_blur, r.crf_iterations, theta_pos=r.crf_theta, w_col=r.crf_colour, mix=r.crf_mix, normalise=r.crf_mean)

@dataclass
class Segmentation:
    "A slide's map before and after the CRF"
    before:SlideMap # class probabilities in the blocks of the patches
    after:SlideMap # the same, smoothed

def crf_map(
    m, # `SlideMap`, NaN where there is no tissue
    slide, # its `Slide`
    crf, # `ConvCRF`
)->SlideMap:
    "The map smoothed along the colours of the slide; places without tissue stay empty"
    prob = np.where(m.covered, m.prob, 1/len(m.prob)).astype(np.float32)
    smooth = np.where(m.covered, crf.smooth(prob, m.image(slide)), np.nan).astype(np.float32)
    return SlideMap(smooth, m.scale_xy, m.dims, m.slide_mpp, m.slide, m.names)

# %% ../nbs/papers/10_dclr.ipynb #b9c182ba
def patch_map(
    model, # module from float (B,3,S,S) to probabilities (B,C), or (B,C,h,w) with pixels of `map_mpp`
    slide, # `Slide`
    recipe, # `DclrRecipe`
    folder=None, # for notes that let a killed prediction go on
    progress:bool=True, # show a bar
)->SlideMap: # NaN where there is no tissue
    "The patches' classes at their places on the slide (Sec. 3.4)"
    r,k = recipe,recipe.input/recipe.patch
    tissue = find_tissue(slide, r)
    m = predict_slide(slide, model, r.input, r.mpp/k, round(r.predict_stride*k), mask=tissue, min_tissue=r.min_tissue/2, out=folder, progress=progress)
    m = block_map(m, r.map_mpp)
    m.prob[:,~true_map(tissue, m)] = np.nan
    return m

# %% ../nbs/papers/10_dclr.ipynb #62231e41
def dclr_predict(
    model, # module from float (B,3,S,S) to probabilities (B,C)
    slide, # `Slide`
    recipe, # `DclrRecipe`
    crf=None, # `ConvCRF`; the recipe's if none
    folder=None, # for notes that let a killed prediction go on
    progress:bool=True, # show a bar
)->Segmentation:
    "The map of a slide, before and after the CRF"
    before = patch_map(model, slide, recipe, folder, progress)
    return Segmentation(before, crf_map(before, slide, crf or dclr_crf(recipe, len(before.prob))))

# %% ../nbs/papers/10_dclr.ipynb #f2bb0354
class ColourFeatures(nn.Module):
    "Mean and standard deviation of the optical density of each channel: what colour alone can tell"
    d = 6
    def forward(self, x): # float (B,3,S,S) in [0,1]
        od = -(x.clamp_min(1/255)).log()
        return torch.cat([od.mean((2,3)), od.std((2,3))], 1)

# %% ../nbs/papers/10_dclr.ipynb #b5d6dc99
class Constant(nn.Module):
    "The same class for every patch"
    def __init__(self,
        c:int=1, # the class
        certainty:float=0.8, # its probability
    ):
        super().__init__()
        self.p = [1-certainty, certainty] if c else [certainty, 1-certainty]

    def forward(self, x): return torch.tensor(self.p, device=x.device).expand(len(x), 2)

class Chance(nn.Module):
    "A coin for every patch"
    def forward(self, x): return F.one_hot(torch.rand(len(x), device=x.device).round().long(), 2)*0.6+0.2

# %% ../nbs/papers/10_dclr.ipynb #fc461199
class ColourThreshold(nn.Module):
    "Tumour where the mean haematoxylin is above (or below) a threshold chosen on labelled patches"
    def __init__(self):
        super().__init__()
        self.register_buffer('inv', torch.tensor(np.linalg.pinv(HE_MATRIX), dtype=torch.float32))

    def amount(self, x): return torch.einsum('bchw,cs->bs', -(x.clamp_min(1/255)).log(), self.inv)[:,0]/x[0,0].numel()

    def fit(self,
        source, # `Patches`
    ):
        v = torch.cat([self.amount(torch.from_numpy(x).permute(0,3,1,2)/255) for x in np.array_split(source.images, len(source)//64+1)]).numpy()
        ok = source.labels>=0
        v,l = v[ok],source.labels[ok]
        cuts = np.quantile(v, np.linspace(0.02, 0.98, 49))
        acc = np.array([[((v>c)==l).mean(), ((v<=c)==l).mean()] for c in cuts])
        i,j = np.unravel_index(acc.argmax(), acc.shape)
        self.cut,self.sign = float(cuts[i]),1-2*int(j)
        return self

    def forward(self, x): return F.one_hot(((self.amount(x)-self.cut)*self.sign>0).long(), 2)*0.6+0.2

# %% ../nbs/papers/10_dclr.ipynb #6bd55d58
def patch_canvas(
    source, # `Patches` of one patient, on a grid, all with a label
    prob, # their probabilities, float (N,C)
    side:int=4, # px of the canvas per patch
)->tuple: # prob float32 (C,h,w), where there is a patch bool (h,w), picture uint8 (h,w,3), truth bool (h,w)
    "Patches at their places"
    t = source.table
    col,row = (np.rint((t[k]-t[k].min())/t.w0).astype(int).to_numpy()*side for k in 'xy')
    full = row.max()+side,col.max()+side
    p,there,truth = np.full((prob.shape[1], *full), 1/prob.shape[1], np.float32),np.zeros(full, bool),np.zeros(full, bool)
    picture = np.full((*full, 3), 255, np.uint8)
    for i,(y,x) in enumerate(zip(row, col)):
        at = slice(y, y+side),slice(x, x+side)
        p[:,*at],there[at],truth[at] = prob[i][:,None,None],True,source.labels[i]==1
        picture[at] = np.array(Image.fromarray(source.images[i]).resize((side,side), Image.Resampling.BOX))
    return p,there,picture,truth

# %% ../nbs/papers/10_dclr.ipynb #e3f92e66
def known_map(
    model, # module from float (B,3,S,S) to probabilities (B,C)
    sample, # (`Slide`, truth (H,W) with tumour above 0, `Patches`); without slide and truth, patches with places
    recipe, # `DclrRecipe`
)->tuple: # as of `patch_canvas`
    "A sample's probabilities, where they are, its picture and its truth, at the resolution of the CRF"
    slide,truth,known = sample
    if slide is None: return patch_canvas(known, embed(model, known))
    m = patch_map(model, slide, recipe, progress=False)
    return np.where(m.covered, m.prob, 1/len(m.prob)).astype(np.float32),m.covered,m.image(slide),true_map(np.asarray(truth)>0, m)

def tumour_of(
    prob, # float (C,h,w)
    covered, # bool (h,w)
)->np.ndarray: # bool (h,w)
    "Where the map says tumour"
    return (prob.argmax(0)==1) & covered

# %% ../nbs/papers/10_dclr.ipynb #ed904c61
def dclr_evaluate(
    model, # module from float (B,3,S,S) to probabilities (B,2), or (B,2,h,w)
    samples, # list of (`Slide`, truth, `Patches` or none); see `known_map`
    recipe, # `DclrRecipe`
    crf=None, # `ConvCRF`; the recipe's if none
)->pd.DataFrame: # a row a slide: accuracy, dice_before, dice_after, and tp, fp, fn for both
    "Patch accuracy, and Dice of the tumour region before and after the CRF"
    rows,crf = [],crf or dclr_crf(recipe)
    for slide,truth,known in samples:
        known = known or cut_patches(slide, recipe, np.asarray(truth)>0, recipe.predict_stride, progress=False)
        p,ok = embed(model, known),known.labels>=0
        pred = (p.mean((2,3)) if p.ndim==4 else p).argmax(1)
        prob,covered,image,t = known_map(model, (slide,truth,known), recipe)
        row = dict(slide=known.table.slide.iloc[0], accuracy=accuracy(pred[ok], known.labels[ok]) if ok.any() else np.nan, patches=int(ok.sum()))
        for name,q in (('before', prob), ('after', crf.smooth(prob, image))):
            s = counts(tumour_of(q, covered), t)
            row |= {f'dice_{name}':dice(tumour_of(q, covered), t), **{f'{k}_{name}':v for k,v in s.items()}}
        rows.append(row)
    return pd.DataFrame(rows)

# %% ../nbs/papers/10_dclr.ipynb #c8559231
def summary(
    table, # of `dclr_evaluate`
)->dict: # accuracy over all patches; Dice as mean over slides and pooled, before and after
    "The rows of several slides in one"
    res = dict(accuracy=np.average(table.accuracy.fillna(0), weights=table.patches) if table.patches.any() else np.nan)
    for k in ('before','after'):
        tp,fp,fn = (table[f'{o}_{k}'].sum() for o in ('tp','fp','fn'))
        res |= {f'dice_{k}':table[f'dice_{k}'].mean(), f'pooled_{k}':2*tp/max(2*tp+fp+fn, 1)}
    return res

# %% ../nbs/papers/10_dclr.ipynb #2f27d616
def learn_crf(
    model, # module from float (B,3,S,S) to probabilities (B,2)
    samples, # list of training samples, see `known_map`
    recipe, # `DclrRecipe`
    epochs:int=10, # rounds over all maps
)->tuple: # `ConvCRF`, the loss of each round
    "A CRF whose scales, weights and mix were learnt by back-propagation (Sec. 2.3)"
    maps,crf = [known_map(model, s, recipe) for s in samples],dclr_crf(recipe)
    def known_dice(z, truth): # truth is -1 where there is no map
        on = truth>=0
        return soft_dice_loss(z.movedim(1, -1)[on].T[None,:,None], truth[on][None,None])
    probs,images,truths = zip(*[(p, im.transpose(2,0,1).astype(np.float32), np.where(on, t, -1)) for p,on,im,t in maps])
    return crf,crf.fit(probs, images, truths, epochs, loss_func=known_dice)

# %% ../nbs/papers/10_dclr.ipynb #4a4798cf
@dataclass
class Task:
    "A data set as every method is given it"
    name:str # for the ledger
    recipe:DclrRecipe # what all rows have in common
    train:list # of samples (`Slide`, truth (H,W), `Patches`); slide and truth are none where there are only patches
    test:list # likewise
    split:str # what the test samples are called in the ledger
    mpp:float|None=None # resolution of the pictures, um/px, where the user said it

    @functools.cached_property
    def patches(self): return join_patches([p for *_,p in self.train])

# %% ../nbs/papers/10_dclr.ipynb #d35e1d0d
phantom_looks = dict( # how the tissue of each kind differs from the phantom's preset without a difference in colour
    nests=replace(shared_look, tumour_um=300., septum_um=12., tumour_area=34., tumour_cells=0.95),
    cells=replace(shared_look, tumour_um=450., septum_um=7., tumour_area=62., tumour_lumen=2.6),
    sheets=replace(shared_look, tumour_um=600., septum_um=5., tumour_area=38., tumour_lumen=1.6))

# %% ../nbs/papers/10_dclr.ipynb #e1a9cdaf
task_changes = dict( # what a data set wants
    phantom=dict(side=2048, epochs=16),
    GlaS=dict(mpp=0.62, stride=96, background='none', jitter=0.2, grey=0., coherent=0, clusters=16, map_mpp=4., crf_filter=11, crf_theta=3., crf_colour=3., epochs=8),
    IDC=dict(input=48, view=32, crop=(0.3,0.8), depth=3, jitter=0.2, grey=0., coherent=0, crf_filter=9, crf_theta=2.5, queue=256, epochs=40),
    Queensland=dict(mpp=1., background='hsv', map_mpp=16., epochs=16))
tissue_kinds = {'phantom nests':'phantom', 'phantom cells':'phantom', 'phantom sheets':'phantom', 'GlaS':'GlaS', 'IDC':'IDC',
    'BCC':'Queensland', 'SCC':'Queensland', 'IEC':'Queensland'}

def table_recipe(
    name:str, # of a data set, one of `tissue_kinds`
    scale:str|None=None, # 'tiny', 'small' or 'paper'
    seed:int=42, # of training
)->DclrRecipe:
    "The recipe that all rows of a data set have in common"
    if name not in tissue_kinds: raise DataError(f'there is no data set {name!r}', fix=f'Choose one of {", ".join(tissue_kinds)}')
    r = DclrRecipe.at('small', seed=seed, **task_changes[tissue_kinds[name]])
    return replace(r, **dict(tiny=dict(width=4, epochs=max(1, r.epochs//8)), small=dict(width=8), paper=dict(width=64, epochs=10*r.epochs))[get_scale(scale)])

# %% ../nbs/papers/10_dclr.ipynb #dc64aace
def slide_sample(
    path, # of a slide
    truth, # (H,W), tumour above 0
    recipe, # `DclrRecipe`
    stride:int|None=None, # see `cut_patches`
)->tuple: # a sample of `Task`
    "A slide, its truth and its patches"
    return Slide(path),truth,cut_patches(Slide(path), recipe, np.asarray(truth)>0, stride, progress=False)

def phantom_task(
    kind:str, # one of `phantom_looks`
    recipe, # `DclrRecipe`
    folder, # where the slides are, or will be
)->Task:
    "Two phantom slides to learn from, three to be judged on"
    def sample(i, stride):
        path = out_folder(folder)/f'{kind}_{recipe.side}_{i}.tif'
        if not path.with_suffix('.json').exists(): phantom_slide(path, recipe.side, recipe.side, recipe.mpp, seed=i, look=phantom_looks[kind])
        return slide_sample(path, np.array(Image.open(path.with_suffix('.truth.png')))>0, recipe, stride)
    return Task(f'phantom {kind}', recipe, [sample(i, None) for i in (30,31)], [sample(i, recipe.predict_stride) for i in (40,41,42)], 'test slides')

# %% ../nbs/papers/10_dclr.ipynb #91fe2045
def picture_samples(
    samples, # list of `Sample`
    truths, # function of a `Sample` that gives its truth (H,W), tumour above 0
    recipe, # `DclrRecipe`
    folder, # where their slides are, or will be
    mpp:float, # their resolution, um/px
    stride:int|None=None, # see `cut_patches`
)->list: # of samples of `Task`
    "Pictures as small slides, with truth and patches"
    res = []
    for s in samples:
        path = out_folder(Path(folder)/f'{mpp:g}_um')/f'{s.name}.tif'
        if not path.exists(): write_slide(s.image, path, mpp, quality=95, subsampling='4:4:4')
        res.append(slide_sample(path, truths(s), recipe, stride))
    return res

def glas_task(
    recipe, # `DclrRecipe`
    folder, # where the slides are, or will be
    path=None, # folder of GlaS; `data_folder('glas')` if none
)->Task:
    "GlaS with glands as tumour"
    parts = [[s for s in glas(path) if (s.split=='train')==first] for first in (True, False)]
    train,test = (picture_samples(o, lambda s: s.instances, recipe, Path(folder)/k, recipe.mpp) for o,k in zip(parts, ('train','test')))
    return Task('GlaS', recipe, train, test, f'test ({len(test)} of 80 images)')

# %% ../nbs/papers/10_dclr.ipynb #9c35984b
def read_idc(
    recipe, # `DclrRecipe`
    path=None, # folder of the data set; `data_folder('idc')` if none
)->Patches:
    "All whole patches of IDC with label, patient and place"
    root = dataset_root('idc', path)
    files = {f.name:f for f in root.rglob('*_class?.png')} # the usual download holds all patches twice
    found = [(f,m) for _,f in sorted(files.items()) if (m := re.match(r'(\d+)_idx5_x(\d+)_y(\d+)_class([01])$', f.stem))]
    if not found: raise DataError('there is nothing of IDC here', root, 'It should hold patches such as 10253_idx5_x1001_y1001_class0.png, in any folder')
    ims = [Image.fromarray(read_rgb(f)) for f,_ in found]
    whole = [i for i,im in enumerate(ims) if im.size==(50,50)]
    if not whole: raise DataError('no patch of IDC is whole, 50 x 50 px', root, 'Copy or download it again')
    table = pd.DataFrame([found[i][1].groups() for i in whole], columns=['slide','x','y','label']).astype(dict(x=int, y=int, label=int)).assign(w0=50., h0=50.)
    return Patches(np.stack([np.array(ims[i].resize((recipe.input,)*2, Image.Resampling.BILINEAR)) for i in whole]), table)

def idc_task(
    recipe, # `DclrRecipe`
    path=None, # as for `read_idc`
)->Task:
    "IDC, a quarter of the patients for the test"
    source = read_idc(recipe, path)
    ids = np.random.default_rng(42).permutation(sorted(source.table.slide.unique()))
    if len(ids)<4: raise DataError(f'{len(ids)} patients are too few to divide', path, 'Use the whole data set')
    def part(some): return [(None, None, source[np.flatnonzero(source.table.slide==i)]) for i in some]
    return Task('IDC', recipe, part(ids[len(ids)//4:]), part(ids[:len(ids)//4]), 'test patients')

# %% ../nbs/papers/10_dclr.ipynb #83da485a
def queensland_task(
    cancer:str, # 'BCC', 'SCC' or 'IEC'
    recipe, # `DclrRecipe`
    folder, # where the slides are, or will be
    path=None, # folder of the data set; `data_folder('queensland')` if none
    mpp:float|None=None, # resolution of its images, um/px
)->Task:
    "The sections of one cancer, four of five for training"
    if mpp is None: raise DataError('the resolution of the Queensland sections does not stand in their files', fix='Say it: mpp, or --mpp on the command line')
    found = [s for s in queensland(path, mpp) if s.info['cancer']==cancer]
    if len(found)<5: raise DataError(f'there are {len(found)} sections of {cancer!r}, too few to divide', path, 'Check the folder and the name of the cancer')
    order,n = np.random.default_rng(42).permutation(len(found)),round(0.8*len(found))
    tumour = [i for i,k in enumerate(queensland_classes, 1) if 'carcinoma' in k]
    def part(some): return picture_samples([found[i] for i in some], lambda s: np.isin(s.classes, tumour), recipe, Path(folder)/'sections', mpp)
    train,test = part(order[:n]),part(order[n:])
    return Task(cancer, recipe, train, test, 'test (20 % of the sections)', mpp)

def make_task(
    name:str, # one of `tissue_kinds`
    recipe, # `DclrRecipe`
    folder, # where slides are kept
    mpp:float|None=None, # resolution of the Queensland sections, um/px
)->Task:
    "A data set by its name"
    match tissue_kinds.get(name):
        case 'phantom': return phantom_task(name.split()[1], recipe, Path(folder)/'phantom')
        case 'GlaS': return glas_task(recipe, Path(folder)/'glas')
        case 'IDC': return idc_task(recipe)
        case 'Queensland': return queensland_task(name, recipe, Path(folder)/'queensland', mpp=mpp)
    raise DataError(f'there is no data set {name!r}', fix=f'Choose one of {", ".join(tissue_kinds)}')

# %% ../nbs/papers/10_dclr.ipynb #894298e8
def labelled_learner(
    source, # `Patches`; only those with a label count
    recipe, # `DclrRecipe`
    folder=None, # where to keep a checkpoint; none if not given
)->Learner: # of a module from float (B,3,S,S) to logits (B,2)
    "A learner that classifies patches by their labels, with one augmented view of each"
    r = recipe
    dls = dclr_dls(source[np.flatnonzero(source.labels>=0)], r)
    set_seed(r.seed)
    encoder = DUNet(r.width, r.depth, r.extra, r.pool)
    return told_learner(dls, nn.Sequential(encoder, nn.Linear(encoder.d, 2)), F.cross_entropy, r, folder, [DeviceAugment(dclr_aug(r).aug)])

def told_learner(
    dls, # of `dclr_dls` or `pixel_dls`
    model, # module that gives logits
    loss_func, # of logits and what the loaders give besides
    recipe, # `DclrRecipe`
    folder=None, # where to keep a checkpoint; none if not given
    cbs=(), # more callbacks
)->Learner:
    "A learner with the optimiser and the budget of `dclr_learner`"
    r,cbs = recipe,[*cbs, StopOnNaN(), *(speedups(dls.device) or [ChannelsLast()])]
    if folder: cbs.append(Checkpoint(folder, recipe=r))
    return Learner(dls, model, loss_func=loss_func, opt_func=partial(SGD, mom=r.momentum), lr=r.lr, wd=r.wd, cbs=cbs)

# %% ../nbs/papers/10_dclr.ipynb #0ae4f73f
def cut_map(
    m, # (H,W), over the whole slide at any resolution
    table, # x, y, w0, h0 in level-0 px
    dims, # (width, height) of the slide, level-0 px
    side:int, # of a part, px
)->np.ndarray: # (N,side,side)
    "The part of a map under each patch, by the nearest pixel"
    def at(start, size, n, full):
        px = (start.to_numpy(float)[:,None] + (np.arange(side)+0.5)*size.to_numpy(float)[:,None]/side)*n/full
        return px.astype(int).clip(0, n-1)
    y,x = at(table.y, table.h0, m.shape[0], dims[1]),at(table.x, table.w0, m.shape[1], dims[0])
    return m[y[:,:,None],x[:,None]]

# %% ../nbs/papers/10_dclr.ipynb #3c427735
class _Windows:
    "Windows of patches with class and weight of each pixel: anywhere and turned any way, or the middle as it lies"
    def __init__(self, parts, side, draw): self.parts,self.side,self.draw = parts,side,draw
    def __len__(self): return len(self.parts[0])
    def __getitem__(self, i):
        s,free = self.side,self.parts[0].shape[1]-self.side
        y,x,turn = (int(torch.randint(n, ())) for n in (free+1, free+1, 8)) if self.draw else (free//2, free//2, 0)
        win = [np.rot90(o[i,y:y+s,x:x+s], turn%4) for o in self.parts]
        im,c,w = (torch.from_numpy((o[:,::-1] if turn>3 else o).copy()) for o in win)
        return im.permute(2,0,1),c.long(),w

# %% ../nbs/papers/10_dclr.ipynb #02ce3a57
def pixel_dls(
    task, # `Task` with slides
    recipe, # `DclrRecipe`
)->DataLoaders: # batches of float (B,3,V,V) in [0,1], classes int64 (B,V,V), weights float (B,V,V)
    "Windows of the training patches with the classes and the weights of Eq. 1 (the class balance alone if `w0` is 0)"
    r,parts = recipe,[]
    for slide,truth,known in task.train:
        if slide is None: raise DataError(f'{task.name} has labels of patches and no outlines', fix='Take a data set with slides')
        things = np.asarray(truth) if np.asarray(truth).dtype!=bool else ndi.label(truth)[0]
        weights = border_weights(things, r.w0, r.sigma)
        parts.append([known.images, *(cut_map(o, known.table, slide.dims, r.input) for o in (things>0, weights))])
    parts = [np.concatenate(o) for o in zip(*parts)]
    order,n = np.random.default_rng(r.seed).permutation(len(parts[0])),max(round(len(parts[0])*r.valid), 2)
    if len(order)-n<8: raise DataError(f'{len(order)} patches are too few to learn from', fix='Use a smaller patch or stride, or more slides')
    set_seed(r.seed)
    def as_float(b): return b[0].float()/255,*b[1:]
    def loader(i, first):
        items = _Windows([o[i] for o in parts], r.view or r.input, first)
        return DataLoader(items, bs=min(r.batch_size, len(i)), shuffle=first, drop_last=True, after_batch=as_float, device=get_device())
    res = DataLoaders(loader(order[n:], True), loader(order[:n], False), device=get_device())
    res.n_inp = 1 # images go in; classes and weights are for the loss
    return res

# %% ../nbs/papers/10_dclr.ipynb #c92d7fe6
class Outliner(nn.Module):
    "A DU-Net that classifies pixels, trained with outlines"
    def __init__(self,
        recipe, # `DclrRecipe`
    ):
        super().__init__()
        r = recipe
        self.net = DUNet(r.width, r.depth, r.extra, 'decoder')
        self.out = nn.Conv2d(self.net.d, 2, 1)

    def forward(self, x): return self.out(self.net.maps(x)) # float (B,3,S,S) in [0,1] to logits (B,2,S,S)

def outlines(
    net, # `Outliner`
    recipe, # `DclrRecipe`
)->nn.Module: # float (B,3,S,S) to probabilities (B,2,h,w), a pixel of the map each
    "What an outliner says of the pixels of the map"
    r,step = recipe,math.gcd(recipe.input, round(recipe.predict_stride*recipe.input/recipe.patch))
    fits = [k for k in range(1, step+1) if step%k==0] # sides that patches and steps are multiples of
    return nn.Sequential(net, nn.Softmax(1), nn.AvgPool2d(min(fits, key=lambda k: abs(math.log(k*r.mpp*r.patch/r.input/r.map_mpp)))))

def outline_learner(
    dls, # of `pixel_dls`
    recipe, # `DclrRecipe`
    folder=None, # where to keep a checkpoint; none if not given
)->Learner: # of `Outliner`
    "A learner that outlines by cross-entropy, each pixel with its weight (Eq. 1)"
    set_seed(recipe.seed)
    def weighted(z, c, w): return (F.cross_entropy(z, c, reduction='none')*w).mean()
    return told_learner(dls, Outliner(recipe), weighted, recipe, folder)

# %% ../nbs/papers/10_dclr.ipynb #ca38a2a9
view_ablations = { # augmentations exchanged, one at a time
    'no crop': dict(crop=(1.,1.), view=0), 'no flip': dict(flip=False), 'no colour distortion': dict(jitter=0.), 'no grey': dict(grey=0.),
    'no colour change': dict(jitter=0., grey=0.), 'strong colour': dict(jitter=1., grey=0.2), 'no blur': dict(blur=False), 'with cutout': dict(cutout=True), 'with Sobel': dict(sobel=True)}
number_ablations = {f'tau {v}': dict(tau=v) for v in (0.05,0.1,0.5,1.)}
number_ablations |= {f'batch {v}': dict(batch_size=v, lr=lambda r, v=v: r.lr*v/r.batch_size) for v in (16,32,128,256)}
number_ablations |= {f'depth {v}': dict(depth=v) for v in (2,3,5)}
number_ablations |= {'no extra layer': dict(extra=0), 'two extra layers': dict(extra=2), 'pooled in the decoder': dict(pool='decoder')}

dclr_systems = {m: ('contrast', published[m] | dict(method=m)) for m in published} # how each is trained, and what it changes: values, or functions of the recipe
for m in ('SimCLR','MoCo','MoCo-v2'):
    dclr_systems[f'{m} with the views of DCLR'] = 'contrast',{k:v for k,v in published[m].items() if k not in view_fields} | dict(method=m)
dclr_systems |= {'supervised patches': ('labels', {}), 'supervised pixels, class balance': ('pixels', dict(w0=0.)), 'supervised pixels, border weights': ('pixels', {})}
dclr_systems |= {'untrained': ('features', {}), 'colour': ('features', {}), 'all tumour': ('constant', {}), 'no tumour': ('constant', {})}
dclr_systems |= {f'DCLR, {k}': ('contrast', v) for k,v in (view_ablations | number_ablations).items()}
dclr_systems |= {f'supervised patches, {k}': ('labels', v) for k,v in view_ablations.items()}
dclr_systems |= {f'{m}, four times the steps': ('contrast', dclr_systems[m][1] | dict(epochs=lambda r: 4*r.epochs)) for m in published}

# %% ../nbs/papers/10_dclr.ipynb #e2c833d8
def system_kind(
    system:str, # one of `dclr_systems`
)->str:
    "How a system is trained: 'contrast', 'labels', 'pixels', 'features' or 'constant' for not at all"
    if system not in dclr_systems: raise DataError(f'there is no system {system!r}', fix=f'Choose one of {", ".join(dclr_systems)}')
    return dclr_systems[system][0]

def system_recipe(
    system:str, # one of `dclr_systems`
    recipe, # `DclrRecipe`
)->DclrRecipe:
    "The recipe of a row"
    system_kind(system)
    return replace(recipe, **{k: v(recipe) if callable(v) else v for k,v in dclr_systems[system][1].items()})

# %% ../nbs/papers/10_dclr.ipynb #abd28868
def features_of(
    system:str, # one of `dclr_systems`, of the kinds 'contrast' and 'features'
    task, # `Task`
    recipe, # `DclrRecipe` of the row
    folder=None, # for a checkpoint
)->tuple: # module from float (B,3,S,S) to (B,d), its history or none
    "What a patch looks like to a system"
    if system=='colour': return ColourFeatures(),None
    if system=='untrained':
        set_seed(recipe.seed)
        return DCLR(recipe).encoder.to(get_device()),None
    learn = dclr_learner(dclr_dls(task.patches, recipe), recipe, folder)
    with quiet(learn, system): dclr_fit(learn, recipe)
    return learn.model.encoder,history(learn)

def system_models(
    system:str, # one of `dclr_systems`
    task, # `Task`
    folder=None, # for a checkpoint
)->tuple: # {head: module from patches to probabilities}, the history of the training or none
    "Train a system and give its models"
    how,r,source = dclr_systems[system][0],system_recipe(system, task.recipe),task.patches
    if how=='constant': return {'': Constant(int(system=='all tumour'))},None
    if how in ('labels','pixels'):
        learn = labelled_learner(source, r, folder) if how=='labels' else outline_learner(pixel_dls(task, r), r, folder)
        with quiet(learn, system): dclr_fit(learn, r)
        return {'': nn.Sequential(learn.model, nn.Softmax(1)) if how=='labels' else outlines(learn.model, r)},history(learn)
    f,curve = features_of(system, task, r, folder)
    h = embed(f, source)
    heads = dict(clusters=PatchClusters(h.shape[1], r.clusters, certainty=r.certainty, coherent=min(r.coherent, h.shape[1])), probe=LinearProbe(h.shape[1]))
    return {k: nn.Sequential(f, v.fit(h, source.table).to(get_device())).eval() for k,v in heads.items()},curve

# %% ../nbs/papers/10_dclr.ipynb #2e516368
def save_row(
    table, # of `dclr_evaluate`
    system:str, # name in the ledger, with its head
    task, # `Task`
    **more, # handed to `save_result`
):
    "Write the scores of one model into the ledger"
    table,pooled = table.set_index('slide'),summary(table)
    def save(name, metric, value, column=None, **extra):
        each = None if column is None else table[column].dropna().round(4).to_dict()
        save_result('dclr', name, task.name, task.split, metric, value, each, **extra, **more)
    save(system, 'accuracy', pooled['accuracy'], 'accuracy', patches=table.patches.to_dict())
    for name,k in ((system, 'before'), (f'{system} + ConvCRF', 'after')):
        save(name, 'dice_pooled', pooled[f'pooled_{k}'])
        save(name, 'dice', pooled[f'dice_{k}'], f'dice_{k}')

def dclr_row(
    system:str, # one of `dclr_systems`
    task, # `Task`
    folder=None, # for checkpoints
    scale=None, # of the run, for the ledger
    results=None, # folder of the ledger
)->dict: # {head: DataFrame of `dclr_evaluate`}
    "Train, measure and write down one system"
    start,r,done = time.time(),system_recipe(system, task.recipe),{}
    models,curve = system_models(system, task, folder and Path(folder)/row_folder(system, task))
    about = dict(scale=scale, seed=r.seed, device=get_device(), folder=results, recipe=r.to_dict(), mpp=task.mpp)
    if curve is not None: about['curve'] = {k:v.round(4).tolist() for k,v in curve.items()}
    for head,m in models.items():
        set_seed(r.seed)
        done[head] = dclr_evaluate(m, task.test, r)
        save_row(done[head], f'{system}, {head}' if head else system, task, seconds=time.time()-start, **about)
    return done

def row_folder(
    system:str, # one of `dclr_systems`
    task, # `Task`
)->str:
    "Name of the folder for a row's checkpoint"
    code = hashlib.sha256(json.dumps([system_recipe(system, task.recipe).to_dict(), task.mpp]).encode()).hexdigest()[:12]
    return re.sub(r'\W+', '_', f'{task.name} {system} ') + code

# %% ../nbs/papers/10_dclr.ipynb #6d6ae787
_tasks = {}

def _one_row(name, system, seed, scale, folder, results, mpp, threads=None):
    "A row in a process of its own; a data set is read once in each"
    if threads: torch.set_num_threads(threads)
    recipe,key = table_recipe(name, scale, seed),(name, scale, folder, mpp, os.environ.get('HISTOLAB_DATA'))
    if key not in _tasks: _tasks[key] = make_task(name, recipe, folder, mpp)
    start,task = time.time(),replace(_tasks[key], recipe=recipe)
    done = dclr_row(system, task, Path(folder)/'rows', scale, results)
    best = ', '.join(f'{k or "model"} {summary(v)["accuracy"]:.3f}, Dice {summary(v)["dice_before"]:.3f} to {summary(v)["dice_after"]:.3f}' for k,v in done.items())
    return f'{name}, {system}, seed {seed}: {best} ({time.time()-start:.0f} s)'

def _key(name, system, seed, recipe, mpp): return name,system,seed,json.dumps(recipe, sort_keys=True),mpp if tissue_kinds[name]=='Queensland' else None

def missing_rows(
    systems, # list, of `dclr_systems`
    names, # list of data sets, of `tissue_kinds`
    seeds, # of the trainings
    scale:str, # of the runs
    results=None, # folder of the ledger
    mpp:float|None=None, # resolution of the Queensland sections, um/px
)->list: # of (data set, system, seed)
    "Rows that are not in the ledger with the recipe of today; outlines cannot be learnt where there are only patches"
    df = ledger.results('dclr', results)
    df = df[(df.scale==scale)&(df.metric=='dice')&df.dataset.isin(list(tissue_kinds))]
    have = {_key(o.dataset, o.system, o.seed, o.recipe, getattr(o, 'mpp', None)) for o in df.itertuples() if isinstance(getattr(o, 'recipe', None), dict)}
    def last(system): return f'{system}, probe + ConvCRF' if dclr_systems[system][0] in ('contrast','features') else f'{system} + ConvCRF'
    jobs = [(n, s, seed) for seed in seeds for n in names for s in systems if not (n=='IDC' and system_kind(s)=='pixels')]
    return [(n, s, seed) for n,s,seed in jobs if _key(n, last(s), seed, system_recipe(s, table_recipe(n, scale, seed)).to_dict(), mpp) not in have]

# %% ../nbs/papers/10_dclr.ipynb #f2ab395c
def _start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()

def dclr_grid(
    systems, # list, of `dclr_systems`
    names, # list of data sets, of `tissue_kinds`
    seeds=(42,43,44), # of the trainings
    scale:str|None=None, # 'tiny', 'small' or 'paper'
    folder='out/dclr', # for slides and checkpoints
    results=None, # folder of the ledger
    workers:int|None=None, # rows at a time; on a CPU as many as it has cores, at most 4, elsewhere one
    mpp:float|None=None, # resolution of the Queensland sections, um/px
    say=print, # called with a line for each row
)->int: # number of rows that were run
    "All rows that are not in the ledger yet"
    scale,on_cpu = get_scale(scale),get_device().type=='cpu'
    jobs = missing_rows(systems, names, seeds, scale, results, mpp)
    workers = min(workers or (min(os.cpu_count(), 4) if on_cpu else 1), len(jobs))
    rest = scale,str(folder),results and str(results),mpp
    if workers<2:
        for i,job in enumerate(jobs, 1): say(f'{i} of {len(jobs)}: {_one_row(*job, *rest)}')
        return len(jobs)
    before = set(multiprocessing.active_children())
    pool = futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker)
    try:
        found = [pool.submit(_one_row, *job, *rest, max(1, os.cpu_count()//workers)) for job in jobs]
        for i,f in enumerate(futures.as_completed(found), 1): say(f'{i} of {len(jobs)}: {f.result()}')
    except BaseException:
        for p in set(multiprocessing.active_children())-before: p.terminate()
        raise
    finally: pool.shutdown(cancel_futures=True)
    return len(jobs)

# %% ../nbs/papers/10_dclr.ipynb #addd4f5c
def crf_variants(
    recipe, # `DclrRecipe`
)->dict: # {name: `ConvCRF`}
    "The CRF of the recipe with one thing changed, and two others"
    r = recipe
    res = {f'filter {v}': dclr_crf(replace(r, crf_filter=v)) for v in (3,5,11,21,41) if v!=r.crf_filter} | {f'{v} iterations': dclr_crf(replace(r, crf_iterations=v)) for v in (1,2,10)}
    literal = ConvCRF(2, r.crf_filter, r.crf_blur, theta_pos=r.crf_theta, w_col=r.crf_colour, literal=True)
    return res | {'no colour': dclr_crf(replace(r, crf_colour=0.)), 'Eq. 5 to the letter': literal, 'reference defaults': ConvCRF(2)}

def crf_row(
    task, # `Task`
    folder, # where the row 'DCLR' has its checkpoint
    scale=None, # of the run, for the ledger
    results=None, # folder of the ledger
)->pd.Series: # Dice by variant
    "Measure all variants of the CRF on the maps of DCLR's clusters"
    r,start = task.recipe,time.time()
    m = system_models('DCLR', task, Path(folder)/row_folder('DCLR', task))[0]['clusters']
    crfs = crf_variants(r) | dict(learnt=learn_crf(m, task.train, r)[0])
    maps,found = [known_map(m, s, r) for s in task.test],{}
    about = dict(scale=scale, seed=r.seed, device=get_device(), seconds=time.time()-start, folder=results, recipe=r.to_dict())
    for k,crf in crfs.items():
        masks = [(tumour_of(crf.smooth(p, im), on), t) for p,on,im,t in maps]
        each = {known.table.slide.iloc[0]: round(dice(*o), 4) for o,(*_,known) in zip(masks, task.test)}
        found[k] = np.mean(list(each.values()))
        save_result('dclr', f'DCLR, clusters + ConvCRF, {k}', task.name, task.split, 'dice', found[k], each, crf=repr(crf), **about)
    return pd.Series(found)

# %% ../nbs/papers/10_dclr.ipynb #80cbe09a
def row_parts(
    name:str, # of a system in the ledger, as `dclr_row` and `crf_row` write it
)->tuple: # system, head ('clusters', 'probe' or ''), CRF ('' for none, 'recipe', or the name of a variant)
    "What was measured, by its name in the ledger"
    name,crf,variant = name.partition(' + ConvCRF')
    head = next((h for h in ('clusters','probe') if name.endswith(f', {h}')), '')
    return name.removesuffix(f', {head}'),head,crf and (variant.removeprefix(', ') or 'recipe')

def dclr_scores(
    scale:str='small', # scale of the runs
    results=None, # folder of the ledger
)->pd.DataFrame: # a row a result: system, head, crf, dataset, metric, value, seed, per_image, curve
    "All results of the tables and the ablations"
    df = ledger.results('dclr', results)
    df = df[(df.scale==scale)&df.dataset.isin(list(tissue_kinds))]
    parts = pd.DataFrame([row_parts(o) for o in df.system], columns=['system','head','crf'], index=df.index)
    return pd.concat([df.drop(columns=[*parts], errors='ignore'), parts], axis=1)

# %% ../nbs/papers/10_dclr.ipynb #016ef3da
def dclr_board(
    metric:str='accuracy', # 'accuracy', 'dice' or 'dice_pooled'
    head:str='probe', # 'clusters' or 'probe'; systems that have no heads are always there
    crf:str='', # '' before the CRF, 'recipe' after it, or the name of a variant
    systems=tuple(published), # columns, of `dclr_systems`
    scale:str='small', # scale of the runs
    results=None, # folder of the ledger
)->pd.DataFrame: # a row a data set, a column a system; text
    "One table, from the ledger"
    df = dclr_scores(scale, results)
    df = df[(df.metric==metric)&df['head'].isin([head,''])&(df.crf==crf)&df.system.isin(systems)]
    same = df.groupby(['dataset','seed']).system.transform('nunique')==df.groupby('dataset').system.transform('nunique')
    df = df[same] # seeds that all systems of the row have
    def cell(v): return f'{v.mean():.3f} ({v.min():.3f} to {v.max():.3f})' if len(v)>1 else f'{v.mean():.3f}'
    res = df.groupby(['dataset','system']).value.agg(cell).unstack() if len(df) else pd.DataFrame()
    res = res.reindex(index=[k for k in tissue_kinds if k in res.index], columns=list(systems)).astype(object).fillna('not run')
    return res.rename_axis(None).rename_axis(None, axis=1)

def dclr_boards(
    systems=tuple(published), # columns, of `dclr_systems`
    scale:str='small', # scale of the runs
    results=None, # folder of the ledger
)->dict: # {title: DataFrame}
    "Tables 1 to 3, for the clusters and for the probe"
    kinds = ('Table 1, accuracy', 'accuracy', ''),('Table 2, Dice', 'dice', ''),('Table 3, Dice after the CRF', 'dice', 'recipe')
    return {f'{title}, {head}': dclr_board(metric, head, crf, systems, scale, results) for title,metric,crf in kinds for head in ('clusters','probe')}

# %% ../nbs/papers/10_dclr.ipynb #c7e38299
def data_sets_here(
    mpp:float|None=None, # resolution of the Queensland sections, um/px; without it they are left out
)->list: # of names, of `tissue_kinds`
    "The data sets that can be had on this machine"
    def there(name):
        try: return data_folder(name).is_dir()
        except DataError: return False
    have = dict(phantom=True, GlaS=there('glas'), IDC=there('idc'), Queensland=mpp is not None and there('queensland'))
    return [k for k,v in tissue_kinds.items() if have[v]]

# %% ../nbs/papers/10_dclr.ipynb #58efa226
def dclr_tables(
    scale:str|None=None, # 'tiny', 'small' or 'paper'
    seeds=(42,43,44), # of the trainings
    names=None, # data sets, of `tissue_kinds`; all that are here if none
    systems=tuple(published), # rows, of `dclr_systems`
    folder='out/dclr-tables', # for slides, checkpoints and the tables
    results=None, # folder of the ledger
    workers:int|None=None, # rows at a time, see `dclr_grid`
    mpp:float|None=None, # resolution of the Queensland sections, um/px
    say=print, # called with a line for each row
)->dict: # {title: DataFrame}
    "Tables 1 to 3: run what is missing, write the tables as CSV files, and give them back"
    names = names or data_sets_here(mpp)
    dclr_grid(systems, names, seeds, scale, folder, results, workers, mpp, say)
    boards = dclr_boards(systems, get_scale(scale), results)
    for k,v in boards.items():
        with atomic_path(out_folder(Path(folder)/'tables')/f'{re.sub(r"[^a-z0-9]+", "_", k.lower())}.csv') as p: v.to_csv(p)
    return boards

# %% ../nbs/papers/10_dclr.ipynb #92d3157c
def plot_systems(
    scores, # of `dclr_scores`
    systems, # list of names
    metric:str='accuracy', # one of its metrics
    head:str='probe', # 'clusters' or 'probe'
    crf:str='', # see `dclr_board`
    names=None, # data sets; all if none
    title:str='', # of the picture
    ax=None, # axes; new ones if none
):
    "A group a data set, a bar a system, a dot a training"
    df = scores[(scores.metric==metric)&scores['head'].isin([head,''])&(scores.crf==crf)&scores.system.isin(systems)]
    names = [k for k in names or tissue_kinds if k in set(df.dataset)]
    ax = ax or plt.subplots(figsize=(7,2.4), layout='constrained')[1]
    for i,s in enumerate(systems):
        each = [df[(df.dataset==n)&(df.system==s)].value.to_numpy() for n in names]
        at = np.arange(len(names))+(i-(len(systems)-1)/2)*0.8/len(systems)
        ax.bar(at, [v.mean() if len(v) else 0 for v in each], 0.75/len(systems), label=s, color=palette[i%len(palette)], alpha=0.55)
        for x,v in zip(at, each): ax.plot(np.full(len(v), x), v, '.', color='black', markersize=3)
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.set(ylim=(0,1.2), ylabel=metric, title=title)
    ax.legend(fontsize=5, ncols=4, loc='upper right')
    return ax

# %% ../nbs/papers/10_dclr.ipynb #8c4e455f
__all__ = [o for o in globals() if not o.startswith('_')] # all that the notebook uses, for `from histolab_nb.dclr import *`
