r"""Nobody says what a gland is. Its rim of dark nuclei gives it away, what the rim encloses belongs to it, and a network spreads that knowledge to the glands whose rim is broken.

H&E stains nuclei blue with haematoxylin and nearly all else pink with eosin. Segmenting a whole gland in it without labels is hard because a gland is not one thing: dark nuclei outside, pale cytoplasm and mucus inside, and a white hole in the middle. Zhang's proposal splits it into two easy parts.

1. **Exterior.** A shallow network is trained on one image, on nothing but the image itself (`train_shallow`); its features are clustered (`cluster_responses`), and the darkest of them are the rim of nuclei (`border_of`). What the rim encloses is the interior of *a few* glands, the prior (`known_interior`, `pseudo_mask`).
2. **Interior.** A PSPNet (pyramid scene parsing network, Zhao et al. 2017) is trained on these pseudo masks (`glands_dls`, `glands_learner`), with a loss that pulls the features of known interiors towards those of the exterior (`diffusion_loss`), so that it takes both for one thing.

`stage_one` does the first for a whole data set, `glands_predict` and `glands_evaluate` use the network, `gland_row` and `gland_grid` measure any row of the table: the steps of the method, its ablations and the methods it is compared with.

### The recipe

Every number of the method is a field of `GlandRecipe`; those of the first stage stand in its base. The proposal is two pages long and gives hardly any of them: a star marks what it leaves open. Where a default is known from the public code of its published successor, or of the programs it stands on, we take that. *Ours* marks what the proposal does not have.

`phantom_glands` makes annotated tissue with glands. It is photographed at 1 µm per pixel: a gland is a large thing, and 10x shows it best. A tile may miss all of them, so half as many again are made, and those with hardly any gland are left out first.

`small_image` brings an image to the resolution that a recipe works at: `shrink=2` halves it. Grey images and images with an alpha channel are refused by the check of `check_image`, which says how to convert them.

`ShallowNets` is this network, for several images at once: the convolutions are *grouped*, so that each image passes through weights of its own, and each batch norm sees the values of one image only. All of them start from the same weights. On a GPU this keeps the device busy; the result is that of one network after the other.

The response of the network has one channel for each thing that a pixel may be. Two wishes are put to it. **Be sure of what you say**: at every pixel $n$ the channel with the highest response is taken for the truth, and the cross-entropy to it is made small,

$$\mathcal L_{self} = -\frac1N\sum_n \log\,\mathrm{softmax}(y_n)_{c_n},\qquad c_n=\arg\max_c y_{n,c}.$$

**Say the same of neighbours**: the *spatial loss* is the mean absolute difference of the responses of vertical and of horizontal neighbours,

$$\mathcal L_{spatial} = \overline{|y_{i+1,j}-y_{i,j}|} + \overline{|y_{i,j+1}-y_{i,j}|}.$$

The first alone would keep as many things as there are channels; the second merges what lies together. One channel that is highest everywhere would satisfy both, but the last batch norm forbids it: each channel has mean 0 and variance 1 over the image, so it must be high somewhere and low elsewhere. The proposal cites another paper (IIC) for the "typical self-supervised loss". The first stage that its successor published has this one, and so have we.

`train_shallow` trains the networks of some images of one size and returns their responses, and what the losses were.

### Clusters of its features

The published first stage does not take the argmax. It clusters the responses of all pixels into five groups by K-means (`cluster_responses`: five centres, each pixel goes to the nearest, each centre moves to the mean of its pixels), which are then a few large regions and not many small ones.

The nuclei of a gland stand side by side at its rim, so the rim is dark, and it is blue. `border_cue` measures either, and of the clusters that are large enough (`least`) the border is the one with the highest mean. Often the rim falls into two clusters, dark nuclei and less dark ones, and which of them it takes is a matter of luck: with other first weights the whole mask changes. So the border may also be the *two* darkest clusters together, if they part the image better than the darkest alone by Otsu's criterion, the variance between inside and outside (`parting`). With `darkest=1` there is no such choice.

An image may have no gland, or no tissue. Then some cluster is still the darkest, though hardly darker than the image as a whole: if it differs from its mean by less than `contrast`, in grey levels whatever the cue, there is no border, and a warning says so.

Single nuclei of the stroma are as dark as those of the glands. The code of the proposal's published successor (MSSG, xmed-lab/MSSG) takes away small pieces of the border, and how small depends on how much of the image the border covers: a crowded one is cut more sharply. `drop_noise` does that; the numbers are those of the code, in pixels of the image.

"Fill the surrounded areas", says the proposal. Closed rings are easily filled: `fill_small` takes holes of up to `hole` pixels. But in real tissue few rings are closed, and the gap of one missing nucleus leaves the whole interior open. So we ask more softly what is surrounded, by two questions.

- `seen_share`: standing at a pixel, in which share of 16 directions is there border within `reach`? In the middle of a gland it is nearly all, gap or no gap. Small pieces (`wall`) do not count.
- `room_for`: is there room? The nuclei of the stroma surround everything, too, but they leave little space in between; the inside of a gland holds a large empty disk.

`known_interior` asks both. With the interiors known there is a better way to tell noise, too: border beside an interior is a rim, and where the border is dense all around it is the thick wall of a tumour gland. What is neither is a scattered nucleus, and `rim_of` drops it.

`pseudo_mask` puts it together: 0 for the rest, 1 for the interior, 2 for the exterior. With `reach=0` it is nearly the successor's way: noise by size, closed rims filled (it also thickens a thin border first, which we leave out). Without the `prior` it is the exterior alone.

### A whole data set

`stage_one` does this for many images. On a GPU, those of one size are trained together, as many as fit into its memory (`fit_at_once`). On a processor, where grouped convolutions are slower than plain ones, every core takes one image after the other. Given a `folder`, the clusters of each image are kept as a small picture, so that a run that was killed goes on with the next image, and other ways to fill them need no new training.

`pseudo_masks` takes samples and returns what the second stage learns from: name, image and mask of each, at the recipe's resolution. The annotation of the samples is not opened.

The second stage sees square crops of images and masks. `MaskWindows` draws them, anywhere and turned any way; an image that is smaller than a crop is continued by its mirror image, and its mask with it. Crops are drawn a little larger than the network's input (`crop_window`), and on the device `GlandViews` lets `Warp` show a part of each and bring it to size, image and mask in one step, so that glands are seen larger and smaller; then the dyes vary. A mask is never interpolated.

`GlandNet` is the PSPNet of segmentation-models-pytorch: an encoder that ends at an eighth of the resolution, then *pyramid pooling*: the features are averaged over the whole picture and over 2 x 2, 3 x 3 and 6 x 6 parts of it, and these summaries are laid beside them. So each pixel knows what is around it, near and far. It returns the scores, and the features before the last layer, which the diffusion loss needs.

Two terms. The first is the usual cross-entropy with the pseudo masks. The second is the proposal's own, the **knowledge diffusion loss**. The features of the exterior are summed up in one vector, their mean over the exterior pixels $E$, and every pixel of the known interior $I$ is pulled towards it:

$$\mathcal L_{diff} = \frac1{|I|}\sum_{p\in I}\frac1D\lVert f_p-\bar f_E\rVert^2,\qquad \bar f_E=\frac1{|E|}\sum_{q\in E} f_q.$$

The rest of an image plays no part in it. The proposal does not say whether there is one vector for an image or for a batch (`per`), nor whether the gradient also moves the vector (`detach`: it does not), nor how much the term weighs (`diffusion`). An image without exterior or without known interior has no such term.

`GlandLoss` is the weighted sum. Masks are brought to the features' resolution by taking the pixel in the middle of each square. With `merge`, exterior and interior have one label, and the cross-entropy says *gland* for both; the diffusion loss still knows which is which. `gland_agreement` is what we watch: the share of pixels that are called gland or not as in the pseudo mask. It need not become 1; a network that repeats every mistake of its masks has learnt nothing.

`DiffusionTrace` writes both terms down, batch by batch. `glands_dls` makes the loaders; the crops that are watched are fixed ones of the same images, without augmentation, since nothing here is held out: the masks are no truth.

`glands_learner` is the fastai `Learner`: views on the device, a trace, a monitor, and a checkpoint if it gets a `folder`.

`glands_map` goes over an image of any size in overlapping windows; their answers are averaged back to the whole image, over some turns and flips as well. What comes out is the probability of interior and of exterior, and both are gland. An image smaller than the window is continued by its mirror image.

`gland_mask` calls a pixel gland if the two together are more probable than `threshold`, fills what is enclosed and drops what is too small. `gland_instances` makes single glands of it: what is farther from the rim than half the width of a neck (`neck`) is a core, glands that touch have two, and a watershed gives each core its part of the mask; parts below `min_size` are no glands.

`glands_predict` does all of it for an image: probability, mask and instances at the resolution of the image. For a slide it reads tiles at the recipe's `mpp` where there is tissue and returns a map of the whole slide, ready for GeoJSON; views, filling and dropping are left out there.

`glands_evaluate` takes a model, or any function from an image to a mask, and returns a row for each image: counts of pixels, Dice and IoU of the gland, and the scores of the GlaS challenge after glands were separated: object F1 (is each gland found?), object Dice (how much of it overlaps?) and object Hausdorff distance (how far does its outline stray at worst?), as `metrics` explains them. `pooled_miou` makes of it the number of the proposal. An image in which nothing was found has no Hausdorff distance; it counts with the diagonal of the image.

### What is there without learning

`plain_masks` are the answers that a method has to beat: a coin for each pixel, the whole image, nothing, and a classical one: blur the amount of stain in the red channel, where eosin does not show, take Otsu's threshold, drop what is small and fill the holes.

### What it is compared with

The proposal names three methods that form groups of features while a network is trained, and a network that was not trained at all. Here they are as compact as they get, on the encoder and the pyramid pooling of `GlandNet`, with the same crops and stain jitter, and two groups. `Groups` holds what they share: features, and a 1 x 1 convolution that names a group for each. K-means fits into it, for the nearest of the centres $c_k$ is the one with the highest $2f\cdot c_k-\lVert c_k\rVert^2$, which is linear in the feature $f$.

**DeepCluster** (Caron et al. 2018) clusters the features of all images, trains the network for an epoch to tell the clusters apart, and begins again. Before each epoch a copy of the network is put aside that gives the clusters of what it is shown, while the network itself sees the image in other colours.

**IIC** (Ji et al. 2018) needs no clusters in between: the groups of a pixel in two views should tell as much about each other as possible. With $P$ the joint distribution of both, over all pixels, the loss is minus the mutual information $\sum P_{ab}\log\frac{P_{ab}}{P_aP_b}$. It is highest when the groups agree *and* are of one size. Features have length 1 here, so they are multiplied by 10 first; else the softmax could hardly decide.

**PiCIE** (Cho et al. 2021) asks for two things by name: *invariance* to colours and *equivariance* to geometry. The features of the two views are clustered apart; each view has to fit its own clusters, and those of the other view.

`Regroup` is the callback that forms groups before each epoch, from some views of the images.

`group_learner` trains any of them; `group_maps` gives the groups of images, and `name_groups` asks the truth one question about a whole set.

The simplest grouping needs no network: K-means of colours, over all training images (`colour_groups`).

## The table

A row is one system. `gland_changes` names those that are a change of the recipe: the ablations, and the second round, which is ours. `gland_masks` trains what a row needs on the samples whose split is *train*, without their annotation. The first stage alone learns from nothing but the image it is asked about, and the groups of the compared methods get their names in the split they are measured on. The row without the prior has no known interior, so the diffusion loss has nothing to pull there either. The scores of single glands are measured for `object_systems` only.

`gland_row` measures a row on every split and writes it into the ledger: the pooled mIoU, with the mIoU of each image beside it, and the object scores. `gland_grid` runs many rows; what is in the ledger with the same recipe is not run again, so a grid that was killed goes on.

`gland_board` collects what the ledger holds: mIoU of each system with its 95 % interval over images (whose counts are averaged over seeds first), benign and malignant images apart where grades are known, and the object scores.

`gland_samples` reads GlaS for this protocol: `train` to learn from, and the test images, which are `test`, or `testA` and `testB` in the official layout. `crag` reads CRAG in the same way.

Docs: https://histolab-nb.github.io/histolab_nb/papers/glands.html.md"""

# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/papers/40_glands.ipynb.

# %% auto #0
__all__ = ['gland_rules', 'tiny_scale', 'small_scale', 'gland_look', 'noise_sizes', 'mask_names', 'Pseudo', 'GlandSegmentation',
           'score_names', 'plain_masks', 'group_methods', 'gland_changes', 'stage_changes', 'object_systems',
           'gland_systems', 'ExteriorRecipe', 'GlandRecipe', 'phantom_glands', 'small_image', 'ShallowNets',
           'self_loss', 'spatial_loss', 'train_shallow', 'cluster_responses', 'border_cue', 'parting', 'border_of',
           'drop_noise', 'seen_share', 'room_for', 'known_interior', 'rim_of', 'pseudo_mask', 'stage_key',
           'fit_at_once', 'same_size', 'stage_one', 'pseudo_masks', 'crop_window', 'GlandViews', 'GlandNet',
           'diffusion_loss', 'GlandLoss', 'gland_agreement', 'DiffusionTrace', 'glands_dls', 'glands_learner',
           'glands_map', 'gland_mask', 'gland_instances', 'glands_predict', 'mean_iou', 'pooled_miou',
           'glands_evaluate', 'dark_and_filled', 'centres_layer', 'kmeans_layer', 'Groups', 'balanced', 'DeepCluster',
           'mutual_information', 'IIC', 'PiCIE', 'some_views', 'Regroup', 'group_learner', 'group_maps', 'name_groups',
           'smooth_colours', 'colour_groups', 'gland_recipe', 'glands_fit', 'next_mask', 'gland_masks', 'gland_row',
           'gland_grid', 'gland_board', 'gland_samples']

# %% ../nbs/papers/40_glands.ipynb #889377f3
import hashlib, json, math, psutil, threading, time, warnings, numpy as np, pandas as pd, segmentation_models_pytorch as smp, torch
from collections import namedtuple
from copy import deepcopy
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from PIL import Image
from fastai.basics import *
from fastai.callback.schedule import *
from scipy import ndimage as ndi
from skimage.color import rgb2gray, rgb2lab
from skimage.draw import line
from skimage.filters import threshold_otsu
from skimage.segmentation import relabel_sequential, watershed
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torchvision.transforms.v2 import Normalize as NormaliseChannels
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from tqdm.auto import tqdm
from . import ledger
from .ledger import *
from .core import *
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

# %% ../nbs/papers/40_glands.ipynb #49082796
gland_rules = dict( # field: what it must be, and in words
    cue=(lambda o: o in ('grey','haematoxylin'), "Choose 'grey' or 'haematoxylin'"), per=(lambda o: o in ('image','batch'), "Choose 'image' or 'batch'"),
    crop=(lambda o: o>=32 and o%32==0, 'A multiple of 32, since the network halves it up to five times: 96, 128, 256 ...'),
    depth=(lambda o: 3<=o<=5, 'From 3 to 5'), views=(lambda o: 1<=o<=8, 'From 1 to 8'), clusters=(lambda o: 2<=o<=255, 'From 2 to 255'),
    sides=(lambda o: 0<o<=1, 'Above 0, up to 1'), threshold=(lambda o: 0<o<1, 'Between 0 and 1'), overlap=(lambda o: 0<=o<1, 'From 0, below 1'),
    **{k:(lambda o: o>=1, 'From 1') for k in ('shrink','darkest','rounds','zoom','channels','layers','steps','wide','batch_size','batches','epochs','group_epochs')},
    **{k:(lambda o: o>=0, 'From 0') for k in ('spatial','diffusion','least','hole','reach','wall','rim','neck','min_size')})

# %% ../nbs/papers/40_glands.ipynb #5cc04a0f
@dataclass
class ExteriorRecipe(Recipe):
    "The numbers of the first stage; a star marks what the proposal leaves open"
    shrink:int = 1 # all images are made smaller by this factor first (ours, for small machines)
    channels:int = 128 # of the shallow network *
    layers:int = 3 # 3 x 3 convolutions in it *
    steps:int = 50 # of its training on one image *
    rate:float = 0.01 # of SGD *
    momentum:float = 0.9 # of SGD *
    spatial:float = 5. # weight of the spatial loss; 0 leaves it out *
    clusters:int = 5 # of K-means on its features *
    cue:str = 'grey' # how the border is known: the darkest ('grey') or the bluest ('haematoxylin') cluster *
    darkest:int = 2 # up to so many of the first clusters make the border: as many as part the image best (ours)
    least:int = 10000 # a cluster with fewer pixels is no border, px of the image *
    contrast:float = 0.05 # grey levels of [0,1] that the border is darker than the image; else there is none (ours)
    hole:int = 15000 # enclosed areas up to so large are filled, px of the image *
    reach:int = 100 # a rim may be broken: border is looked for so far away, px of the image; 0 takes closed rims only (ours)
    sides:float = 0.7 # share of all directions in which border must be seen (ours)
    wall:int = 400 # smaller pieces of border enclose nothing, px of the image (ours)
    wide:int = 24 # an interior has room for a disk of this radius, px of the image (ours)
    rim:int = 16 # border that is so near to an interior is no noise, px of the image (ours)
    around:float = 8. # nor is border that is dense around a pixel: sigma of the Gaussian, px of the image (ours)
    dense:float = 0.5 # and share of border above which it is dense (ours)
    prior:bool = True # take interiors into the pseudo masks at all?
    seed:int = 42 # of everything random

    def __post_init__(self):
        for k,(fits,words) in gland_rules.items():
            if hasattr(self, k) and not fits(getattr(self, k)): raise DataError(f'{k} cannot be {getattr(self, k)!r}', fix=words)

# %% ../nbs/papers/40_glands.ipynb #62b54f0b
@dataclass
class GlandRecipe(ExteriorRecipe):
    "Every number of the gland proposal; a star marks what it leaves open"
    merge:bool = False # one label for exterior and interior in the second stage?
    encoder:str = 'resnet50' # of the PSPNet, a name of timm's *
    imagenet:bool = True # with ImageNet weights, where they can be had? *
    depth:int = 3 # stages of the encoder; it ends at 1/2**depth of the resolution *
    width:int = 512 # channels of the pyramid pooling *
    diffusion:float = 1. # weight of the knowledge diffusion loss; 0 leaves it out *
    detach:bool = True # is the region vector a fixed target? *
    per:str = 'image' # is there one region vector an 'image' or a 'batch'? *
    crop:int = 256 # side of the network's input, px *
    zoom:float = 1.333 # crops show this factor more, or less, of the image *
    stain_jitter:float = 0.2 # haematoxylin and eosin times 1-x .. 1+x *
    stain_shift:float = 0.05 # and -x .. x is added, optical density *
    batch_size:int = 8 # crops a batch *
    batches:int = 100 # of them an epoch *
    epochs:int = 100 # *
    lr:float = 1e-3 # highest rate of one cycle *
    wd:float = 0.01 # weight decay *
    rounds:int = 1 # trainings; each but the first learns from the masks of the one before (ours)
    overlap:float = 0.25 # of the windows in prediction, share of their side *
    views:int = 2 # turns and flips averaged in prediction: 1 to 8 *
    threshold:float = 0.5 # probability above which a pixel is gland *
    min_size:int = 1200 # smaller objects are no glands, px of the image *
    neck:int = 6 # radius of the opening that parts touching glands, px of the image *
    group_dim:int = 32 # features that the compared methods cluster *
    group_epochs:int = 10 # of them, with `batches` each *
    mpp:float = 0.62 # um/px of an image, at which slides are read; that of GlaS

# %% ../nbs/papers/40_glands.ipynb #bcc784f8
tiny_scale = dict(channels=20, steps=30, least=400, hole=1500, reach=50, wall=60, wide=8, rim=8, around=4., cue='haematoxylin',
    encoder='resnet10t', imagenet=False, width=64, crop=96, batch_size=8, batches=20, epochs=3, lr=3e-3,
    views=1, mpp=1., min_size=60, neck=2, group_dim=16, group_epochs=1)
small_scale = dict(shrink=2, channels=32, cue='haematoxylin', encoder='resnet18', imagenet=False, width=128, crop=192, batch_size=12, batches=50, epochs=6, lr=2e-3, group_epochs=4)
GlandRecipe._scales = dict(tiny=tiny_scale, small=small_scale)

# %% ../nbs/papers/40_glands.ipynb #8637ed86
gland_look = Look(tumour_share=.02, glands=1.2, epithelium=3., fat=9., aggregates=0., lymphocytes=.1)

def phantom_glands(
    n:int, # number of samples
    size:int=192, # side, px
    seed:int=0, # the same seed gives the same samples
    split:str='train', # written into the samples
    mpp:float=1., # um/px; 1 is 10x
    **kwargs, # handed to `phantom_samples`, and on to `Phantom`
)->list: # of `Sample`; its instances are the glands
    "Phantom tissue in which the glands are annotated"
    made = phantom_samples(n+n//2+1, size, mpp, seed, ('glands',), **{'look':gland_look, **kwargs})
    made = sorted(made, key=lambda t: (t.glands>0).mean()<.05)[:n]
    return [array_sample(f'phantom {seed}-{i}', t.image, t.glands, None, 'phantom', split=split, mpp=mpp) for i,t in enumerate(made)]

# %% ../nbs/papers/40_glands.ipynb #f68a1aff
def small_image(
    image, # uint8 (H,W,3)
    recipe, # `GlandRecipe`
)->np.ndarray: # uint8 (h,w,3)
    "The image at the recipe's resolution; an edge that is no whole pixel is repeated"
    return shrink_image(check_image(image), recipe.shrink)

# %% ../nbs/papers/40_glands.ipynb #e1c98780
class ShallowNets(nn.Module):
    "The shallow networks of `n` images, side by side in one"
    def __init__(self,
        recipe, # `GlandRecipe`
        n:int=1, # images
    ):
        super().__init__()
        self.n,c = n,recipe.channels
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            *convs,last = [nn.Conv2d(i, c, 3, padding=1) for i in [3]+[c]*(recipe.layers-1)]+[nn.Conv2d(c, c, 1)]
        steps = [o for conv in convs for o in (self.beside(conv), nn.ReLU(), nn.BatchNorm2d(n*c))]
        self.net = nn.Sequential(*steps, self.beside(last), nn.BatchNorm2d(n*c))

    def beside(self, conv):
        "The same convolution `n` times, each for a group of channels of its own"
        n,res = self.n,deepcopy(conv)
        res.groups,res.in_channels,res.out_channels = n,n*conv.in_channels,n*conv.out_channels
        res.weight,res.bias = (nn.Parameter(torch.cat([o.data]*n)) for o in (conv.weight, conv.bias))
        return res

    def forward(self, x): # float (n,3,H,W) in [0,1] to responses (n,C,H,W)
        return self.net(x.flatten(0, 1)[None]).view(self.n, -1, *x.shape[-2:])

# %% ../nbs/papers/40_glands.ipynb #c7e381db
def self_loss(
    y, # responses (n,C,H,W)
): # (n,)
    "Cross-entropy of each pixel to its own argmax, mean over an image"
    return (y.logsumexp(1)-y.amax(1)).mean((1,2))

def spatial_loss(
    y, # responses (n,C,H,W)
): # (n,)
    "Absolute differences of adjacent pixels, mean over an image"
    return y.diff(dim=-2).abs().mean((1,2,3))+y.diff(dim=-1).abs().mean((1,2,3))

# %% ../nbs/papers/40_glands.ipynb #a048b596
def train_shallow(
    images, # list of uint8 (h,w,3), all of one size
    recipe, # `GlandRecipe`
    device=None, # the best there is, if none
    net=None, # `ShallowNets` for so many images; a new one if none
    stop=None, # `threading.Event` that ends the training with `CancelledError`
)->tuple: # responses float32 (n,C,h,w) on the device; DataFrame: a row a step, both losses, things that are left (means over the images)
    "Train a shallow network on each image (stage 1)"
    r,device,n = recipe,torch.device(device or get_device()),len(images)
    x = as_batch(np.stack(images), device)
    net = (net or ShallowNets(r, n)).to(device, memory_format=torch.channels_last if n==1 else torch.preserve_format)
    opt,rows = torch.optim.SGD(net.parameters(), r.rate, r.momentum),[]
    for _ in range(r.steps):
        if stop and stop.is_set(): raise CancelledError
        y = net(x)
        own,near = self_loss(y),spatial_loss(y)
        opt.zero_grad()
        (own+r.spatial*near).sum().backward()
        opt.step()
        rows.append(torch.stack([own.detach().mean(), near.detach().mean()]))
    with torch.no_grad(): y = net(x)
    left = sum(len(o.unique()) for o in y.argmax(1))/n
    return y,pd.DataFrame(torch.stack(rows).cpu(), columns=['self_loss','spatial_loss']).assign(things=[np.nan]*(r.steps-1)+[left])

# %% ../nbs/papers/40_glands.ipynb #df252faa
def cluster_responses(
    y, # responses (C,h,w)
    recipe, # `GlandRecipe`
    some:int=10000, # pixels that the means are computed from
)->np.ndarray: # uint8 (h,w), cluster of each pixel
    "K-means of the responses of one image"
    y = y.detach().cpu().numpy()
    f = np.ascontiguousarray(y.reshape(len(y), -1).T)
    if len(f)<recipe.clusters: raise DataError(f'an image of {len(f)} pixels cannot have {recipe.clusters} clusters')
    pick = np.random.default_rng(recipe.seed).choice(len(f), min(some, len(f)), replace=False)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning) # an empty image has fewer different pixels than clusters
        km = KMeans(recipe.clusters, n_init=1, random_state=recipe.seed).fit(f[pick])
    return km.predict(f).reshape(y.shape[1:]).astype(np.uint8)

# %% ../nbs/papers/40_glands.ipynb #d284a630
def border_cue(
    image, # uint8 (h,w,3)
    cue:str, # 'grey' or 'haematoxylin'
)->np.ndarray: # float (h,w), high at nuclei
    "How dark, or how blue, each pixel is"
    return 1-rgb2gray(image) if cue=='grey' else separate(image)[...,0]

def parting(
    values, # float (h,w)
    inside, # bool (h,w)
)->float: # 0 if all is inside, or nothing
    "Otsu's criterion: variance of the values between inside and outside"
    p = inside.mean()
    return float(p*(1-p)*(values[inside].mean()-values[~inside].mean())**2) if 0<p<1 else 0.

def border_of(
    image, # uint8 (h,w,3) at the recipe's resolution
    clusters, # uint8 (h,w)
    recipe, # `GlandRecipe`
    name='this image', # for the warning
)->np.ndarray: # bool (h,w); empty, with a warning, if there is no dark cluster
    "The clusters of the gland borders (stage 1)"
    r,grey,cue = recipe,border_cue(image, 'grey'),border_cue(image, recipe.cue)
    size,sums = np.bincount(clusters.ravel(), minlength=r.clusters),np.bincount(clusters.ravel(), cue.ravel(), r.clusters)
    order = [k for k in np.argsort(-sums/size.clip(1)) if size[k]>=max(1, r.least/r.shrink**2)]
    options = [np.isin(clusters, order[:i+1]) for i in range(min(r.darkest, len(order)))]
    best = max(options, key=partial(parting, cue), default=np.zeros(clusters.shape, bool))
    if best.any() and grey[best].mean()-grey.mean()>=r.contrast: return best
    why = 'no cluster is dark' if options else f'no cluster has {r.least/r.shrink**2:.0f} px (`least`)'
    warnings.warn(f'{name}: {why}, so there is no border of glands in it')
    return np.zeros(clusters.shape, bool)

# %% ../nbs/papers/40_glands.ipynb #76163444
noise_sizes = (0.70,1000,True),(0.45,600,True),(0.25,400,False),(0.20,100,False),(0.10,50,False) # coverage above which pieces below so many px go; thinned by a pixel first?

def drop_noise(
    border, # bool (h,w)
    recipe, # `GlandRecipe`
)->np.ndarray: # bool (h,w)
    "The border without its small pieces"
    for share,size,thin in noise_sizes:
        if border.mean()>share: return drop_small(ndi.binary_erosion(border, np.ones((3,3))) if thin else border, size/recipe.shrink**2)
    return border

# %% ../nbs/papers/40_glands.ipynb #afadd420
def seen_share(
    border, # bool (h,w)
    reach:int, # px
    directions:int=16, # looked at
)->np.ndarray: # float32 (h,w) in [0,1]
    "Share of all directions in which border is seen within reach"
    (h,w),pad = border.shape,np.pad(border, reach)
    seen = np.zeros((h,w), np.float32)
    for a in 2*np.pi*np.arange(directions)/directions:
        hit = np.zeros((h,w), bool)
        for y,x in zip(*line(0, 0, round(reach*np.sin(a)), round(reach*np.cos(a)))): hit |= pad[reach+y:reach+y+h,reach+x:reach+x+w]
        seen += hit
    return seen/directions

def room_for(
    border, # bool (h,w)
    radius:float, # px
)->np.ndarray: # bool (h,w)
    "What a disk of this radius covers that touches no border"
    centres = ndi.distance_transform_edt(~border)>=radius if border.any() else ~border
    return ndi.distance_transform_edt(~centres)<radius if centres.any() else centres

# %% ../nbs/papers/40_glands.ipynb #24c1c9f0
def known_interior(
    border, # bool (h,w)
    recipe, # `GlandRecipe`
)->np.ndarray: # bool (h,w)
    "Roomy places that border surrounds, be it broken or not (the prior)"
    r,k = recipe,recipe.shrink
    return room_for(border, r.wide/k) & (seen_share(drop_small(border, r.wall/k**2), max(1, r.reach//k))>=r.sides)

def rim_of(
    border, # bool (h,w)
    interior, # bool (h,w)
    recipe, # `GlandRecipe`
)->np.ndarray: # bool (h,w)
    "The border beside interiors, and where it is dense"
    r,k = recipe,recipe.shrink
    near = ndi.distance_transform_edt(~interior)<=r.rim/k if interior.any() else interior
    return border & (near|(ndi.gaussian_filter(border.astype(np.float32), r.around/k)>r.dense))

# %% ../nbs/papers/40_glands.ipynb #15ffc6c3
mask_names = 'rest','interior','exterior'

def pseudo_mask(
    image, # uint8 (h,w,3) at the recipe's resolution
    clusters, # uint8 (h,w)
    recipe, # `GlandRecipe`
    name='this image', # for the warning
)->np.ndarray: # uint8 (h,w), an index into `mask_names`
    "Exterior, and the interior of a few glands"
    r,k = recipe,recipe.shrink**2
    exterior = filled = border_of(image, clusters, r, name)
    if r.prior and r.reach and exterior.any():
        interior = known_interior(exterior, r)
        exterior = rim_of(exterior, interior, r)
        filled = drop_small(exterior|interior, r.wall/k)
    else: exterior = filled = drop_noise(exterior, r)
    if r.prior: filled = fill_small(filled, r.hole/k)
    return np.where(exterior&filled, 2, filled).astype(np.uint8)

# %% ../nbs/papers/40_glands.ipynb #a2e6ef87
def stage_key(
    image, # uint8 (h,w,3) at the recipe's resolution
    recipe, # `GlandRecipe`
)->str:
    "A name for the clusters of an image: it changes with the image, and with any number they depend on"
    r = recipe
    h = hashlib.sha256(json.dumps([r.channels, r.layers, r.steps, r.rate, r.momentum, r.spatial, r.clusters, r.seed, image.shape]).encode())
    h.update(np.ascontiguousarray(image))
    return h.hexdigest()[:24]

def fit_at_once(
    shape:tuple, # of the images, (h,w)
    recipe, # `GlandRecipe`
    device, # `torch.device`
)->int: # from 1
    "How many shallow networks fit into the free memory with images of this size"
    free = torch.cuda.mem_get_info(device)[0] if device.type=='cuda' else psutil.virtual_memory().available
    return max(1, int(.8*free/(64*recipe.channels*math.prod(shape[:2])))) # some 16 floats a pixel and channel

def same_size(
    images, # dict of arrays (h,w,...)
    together:int, # at most so many in a group
)->list: # of lists of keys
    "Groups of images of one size"
    by = {}
    for k,o in images.items(): by.setdefault(o.shape, []).append(k)
    return [v[i:i+together] for v in by.values() for i in range(0, len(v), together)]

# %% ../nbs/papers/40_glands.ipynb #f1ef0c0f
def stage_one(
    images, # list of uint8 (h,w,3) at the recipe's resolution
    recipe, # `GlandRecipe`
    folder=None, # where the clusters are kept
    device=None, # the best there is, if none
    together:int=16, # images of one size in one network, at most; on a CPU it is 1
    progress:bool=True, # show a progress bar, if it takes longer than two seconds
)->list: # of clusters uint8 (h,w)
    "Train and cluster every image (stage 1)"
    device,keys,res = torch.device(device or get_device()),[stage_key(o, recipe) for o in images],{}
    files = {k:out_folder(folder)/f'{k}.png' for k in keys} if folder else {}
    for k,f in files.items():
        if f.exists(): res[k] = read_labels(f).astype(np.uint8)
    new,cpu = {k:o for k,o in zip(keys, images) if k not in res},device.type=='cpu'
    if not new: return [res[k] for k in keys]
    most = fit_at_once(max((o.shape for o in new.values()), key=math.prod), recipe, device)
    groups = same_size(new, 1 if cpu else min(together, most))
    blank,stop = ShallowNets(recipe),threading.Event()
    def work(group):
        y,_ = train_shallow([new[k] for k in group], recipe, device, deepcopy(blank) if len(group)==1 else None, stop)
        for k,o in zip(group, y):
            res[k] = cluster_responses(o, recipe)
            if folder:
                with atomic_path(files[k]) as p: Image.fromarray(res[k]).save(p)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(min(threads, most) if cpu else 1) as pool:
        torch.set_num_threads(1 if cpu else threads)
        try: list(tqdm(pool.map(work, groups), total=len(groups), desc='stage 1', unit='group', delay=2, disable=not progress))
        finally:
            stop.set()
            torch.set_num_threads(threads)
    return [res[k] for k in keys]

# %% ../nbs/papers/40_glands.ipynb #4139a2d8
Pseudo = namedtuple('Pseudo', 'name image mask') # uint8 (h,w,3); uint8 (h,w), an index into `mask_names`

def pseudo_masks(
    samples, # list of `Sample`
    recipe, # `GlandRecipe`
    folder=None, # where the clusters are kept
    progress:bool=True, # show a progress bar, if it takes longer than two seconds
)->list: # of `Pseudo`
    "The first stage for a data set"
    images,names = [small_image(s.image, recipe) for s in samples],[s.name for s in samples]
    clusters = stage_one(images, recipe, folder, progress=progress)
    return [Pseudo(s, o, pseudo_mask(o, c, recipe, s)) for s,o,c in zip(names, images, clusters)]

# %% ../nbs/papers/40_glands.ipynb #e864799d
def crop_window(
    recipe, # `GlandRecipe`
)->int: # px
    "Side of the squares that crops are cut from, a multiple of 32"
    return 32*math.ceil(recipe.crop*recipe.zoom/32)

# %% ../nbs/papers/40_glands.ipynb #211a475d
class GlandViews(nn.Module):
    "A part of each square at another size, and other amounts of dye"
    def __init__(self,
        recipe, # `GlandRecipe`
    ):
        super().__init__()
        self.warp,self.jitter = Warp(recipe.crop, recipe.zoom),HEJitter(recipe.stain_jitter, recipe.stain_shift)

    def forward(self, x, y): # float (B,3,W,W) and int64 (B,W,W) to (B,3,S,S) and (B,S,S)
        x,y = self.warp(x, y)
        return self.jitter(x),y

# %% ../nbs/papers/40_glands.ipynb #e7bf1fd7
class GlandNet(nn.Module):
    "PSPNet that gives scores and features"
    def __init__(self,
        recipe, # `GlandRecipe`
    ):
        super().__init__()
        r = recipe
        make = lambda w: smp.PSPNet(f'tu-{r.encoder}', True if w else None, r.depth, psp_out_channels=r.width, classes=2 if r.merge else 3, upsampling=2**r.depth)
        try: net,self.started = with_weights(make, r.imagenet, r.encoder)
        except Exception as e: raise DataError(f'{r.encoder!r} cannot be the encoder of a PSPNet ({type(e).__name__}: {e})', fix='Take a ResNet, such as resnet18') from None
        self.norm = NormaliseChannels(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self.drop,net.decoder.dropout = net.decoder.dropout,nn.Identity() # features are compared before the dropout
        self.encoder,self.decoder,self.head = net.encoder,net.decoder,net.segmentation_head

    def features(self, x): return self.decoder(self.encoder(self.norm(x))) # float (B,3,H,W) in [0,1] to (B,D,H/2**depth,W/2**depth)

    def forward(self, x): # float (B,3,H,W) in [0,1], sides multiples of 32
        "Scores (B,3,H,W) of rest, interior and exterior, or (B,2,H,W) of rest and gland; features (B,D,H/2**depth,W/2**depth)"
        f = self.features(x)
        return self.head(self.drop(f)),f

# %% ../nbs/papers/40_glands.ipynb #925c8ae6
def diffusion_loss(
    features, # float (B,D,h,w)
    labels, # int (B,h,w): 0 rest, 1 interior, 2 exterior
    per:str='image', # is there one region vector an 'image' or a 'batch'?
    detach:bool=True, # is the region vector a fixed target?
): # float (), 0 if no image has both
    "Squared distance of interior features to the mean feature of the exterior"
    inner,outer = (labels[:,None]==1).to(features.dtype),(labels[:,None]==2).to(features.dtype)
    over = (2,3) if per=='image' else (0,2,3)
    vector = (features*outer).sum(over, keepdim=True)/outer.sum(over, keepdim=True).clamp_min(1)
    far = ((features-(vector.detach() if detach else vector)).square().mean(1, keepdim=True)*inner).sum(over)/inner.sum(over).clamp_min(1)
    known = inner.any((1,2,3))&outer.any((1,2,3)) if per=='image' else (inner.any()&outer.any())[None]
    return (far.flatten()*known).sum()/known.sum().clamp_min(1)

# %% ../nbs/papers/40_glands.ipynb #49179f9b
class GlandLoss:
    "Cross-entropy with the pseudo masks, and knowledge diffusion"
    def __init__(self,
        recipe, # `GlandRecipe`
    ): self.r = recipe

    def parts(self, out, y): # scores (B,C,H,W) and features (B,D,h,w), masks (B,H,W); to both terms
        (scores,f),r = out,self.r
        k = y.shape[-1]//f.shape[-1]
        near = diffusion_loss(f.float(), y[:,k//2::k,k//2::k], r.per, r.detach)
        return F.cross_entropy(scores.float(), y.clamp(max=1) if r.merge else y),near

    def __call__(self, out, y):
        "The weighted sum; `seen` keeps both terms"
        own,near = self.parts(out, y)
        self.seen = torch.stack([own, near]).detach().float()
        return own+self.r.diffusion*near if self.r.diffusion else own

def gland_agreement(out, y):
    "Share of pixels that are gland, or not, in scores and mask"
    return ((out[0].argmax(1)>0)==(y>0)).float().mean()

# %% ../nbs/papers/40_glands.ipynb #04ac6ffe
class DiffusionTrace(Callback):
    "Both terms of `GlandLoss`, a row a training batch, in `table`"
    run_valid = False
    def __init__(self): self.rows = []
    def before_fit(self): self.rows = []
    def state_dict(self): return dict(rows=self.rows)
    def load_state_dict(self, state): self.rows = list(state['rows'])
    def after_loss(self): self.rows.append(self.loss_func.seen)

    @property
    def table(self): return pd.DataFrame(torch.stack(self.rows).cpu() if self.rows else [], columns=['cross_entropy','diffusion'])

def glands_dls(
    source, # list of `Pseudo`
    recipe, # `GlandRecipe`
    device=None, # the best there is, if none
)->DataLoaders: # batches of uint8 (B,3,W,W) and masks int64 (B,W,W)
    "Loaders of the second stage"
    r,device = recipe,device or get_device()
    set_seed(r.seed)
    crops = partial(MaskWindows, [o.image for o in source], [o.mask for o in source], crop_window(r), names=[o.name for o in source])
    train = DataLoader(crops(r.batch_size*r.batches), bs=r.batch_size, device=device)
    fixed = DataLoader(crops(4*r.batch_size, r.seed), bs=r.batch_size, device=device)
    return DataLoaders(train, fixed, device=device)

# %% ../nbs/papers/40_glands.ipynb #948c0253
def glands_learner(
    dls, # of `glands_dls`
    recipe, # `GlandRecipe`
    folder=None, # where a checkpoint is kept, so that a training that was killed goes on
    cbs=None, # more callbacks
)->Learner:
    "A learner of the second stage"
    r = recipe
    set_seed(r.seed)
    cbs = [*L(cbs), DeviceAugment(GlandViews(r), targets=True), DiffusionTrace(), Monitor(), StopOnNaN(), *speedups(dls.device)]
    if folder: cbs.append(Checkpoint(out_folder(folder), recipe=r))
    return Learner(dls, GlandNet(r), GlandLoss(r), opt_func=Adam, lr=r.lr, wd=r.wd, metrics=gland_agreement, cbs=cbs)

# %% ../nbs/papers/40_glands.ipynb #4cffa333
def glands_map(
    model, # `GlandNet`, or a Learner of one
    image, # uint8 (h,w,3) at the recipe's resolution
    recipe, # `GlandRecipe`
)->np.ndarray: # float32 (3,h,w), or (2,h,w) with `merge`; sums to 1
    "Sliding windows, averaged over views"
    model,r = getattr(model, 'model', model),recipe
    model.eval()
    def predict(x): return sum(turned_back(model(turned(x, 5*i%8))[0].softmax(1), 5*i%8) for i in range(r.views))/r.views
    return sliding_map(predict, image, r.crop, r.overlap, device=next(model.parameters()).device)

# %% ../nbs/papers/40_glands.ipynb #9db24956
def gland_mask(
    prob, # float (C,h,w), of `glands_map`
    recipe, # `GlandRecipe`
)->np.ndarray: # bool (h,w)
    "Where there are glands"
    k = recipe.shrink**2
    return drop_small(fill_small(1-prob[0]>recipe.threshold, recipe.hole/k), recipe.min_size/k)

def gland_instances(
    mask, # bool (h,w)
    recipe, # `GlandRecipe`; its lengths are px of an image with `shrink=1`
)->np.ndarray: # int32 (h,w), 0 is background
    "Single glands of a mask"
    r,k,far = recipe,recipe.shrink,mask_distance(mask)
    pieces,n = ndi.label(mask)
    thin = np.isin(pieces, np.setdiff1d(np.arange(1, n+1), pieces[far>r.neck/k])) # pieces without a core are one gland
    res = watershed(-far, ndi.label((far>r.neck/k)|thin)[0], mask=mask)
    return relabel_sequential(np.where(np.bincount(res.ravel())[res]>=r.min_size/k**2, res, 0))[0].astype(np.int32)

# %% ../nbs/papers/40_glands.ipynb #13aa46fa
GlandSegmentation = namedtuple('GlandSegmentation', 'prob mask instances') # float32 (H,W); bool (H,W); int32 (H,W), 0 is background

def glands_predict(
    model, # `GlandNet`, or a Learner of one
    image, # uint8 (H,W,3); or a `Slide`, or the path of one
    recipe, # `GlandRecipe`
    **kw, # for a slide, handed to `predict_slide`: out, mask, progress
): # `GlandSegmentation` of an image, `SlideMap` of a slide
    "The glands of an image or of a slide"
    r,net = recipe,getattr(model, 'model', model)
    if isinstance(image, (Slide,str,Path)):
        stride = max(8, int(r.crop*(1-r.overlap))//8*8)
        kw = dict(stride=stride, shrink=8, names=('rest','gland') if r.merge else mask_names, tag=model_tag(net), device=next(net.parameters()).device)|kw
        return predict_slide(image, lambda x: net.eval()(x)[0].softmax(1), r.crop, r.mpp*r.shrink, **kw)
    shape,k = check_image(image).shape[:2],r.shrink
    prob = glands_map(net, small_image(image, r), r)
    mask = gland_mask(prob, r)
    grown = torch.from_numpy(1-prob[:1])[None]
    if k>1: grown = F.interpolate(grown, scale_factor=k, mode='bilinear')
    return GlandSegmentation(grown[0,0,:shape[0],:shape[1]].numpy(), grow_map(mask, shape, k), grow_map(gland_instances(mask, r), shape, k))

# %% ../nbs/papers/40_glands.ipynb #b2b32f80
score_names = ['miou','object_f1','object_dice','object_hausdorff']

def mean_iou(
    counts, # (n,4): tp, fp, fn, tn of images
)->float: # in [0,1]
    "Mean of the IoU of gland and of background, pooled over images"
    tp,fp,fn,tn = np.asarray(counts, float).sum(0)
    return miou(np.array([[tn,fn],[fp,tp]]), names=np.array([0,1]))

def pooled_miou(
    table, # of `glands_evaluate`
)->Interval: # (value, low, high), from a bootstrap over images
    "mIoU with intersections and unions pooled over all images"
    counts = table[count_names].to_numpy()
    return interval(counts, mean_iou) if len(counts)>1 else Interval(mean_iou(counts), np.nan, np.nan)

def glands_evaluate(
    model, # `GlandNet`, a Learner of one, or a function from uint8 (H,W,3) to a mask, bool (H,W)
    samples, # list of annotated `Sample`
    recipe, # `GlandRecipe`
    objects:bool=True, # also the object scores? They take longer
)->pd.DataFrame: # a row per image: tp, fp, fn, tn (px), those of `rates`, miou, object_f1, object_dice, object_hausdorff (px), grade where it is known
    "All scores on samples"
    net,rows = getattr(model, 'model', model),[]
    for s in samples:
        if isinstance(net, nn.Module): _,mask,found = glands_predict(net, s.image, recipe)
        else: mask,found = net(s.image),None
        truth = s.instances
        row = counts(mask, truth>0)
        rows.append(row | rates(**row) | dict(miou=mean_iou([[row[k] for k in count_names]]), grade=s.info.get('grade (GlaS)')))
        if not objects: continue
        if found is None: found = gland_instances(mask, replace(recipe, shrink=1))
        far = min(object_hausdorff(truth, found), float(np.hypot(*truth.shape)))
        rows[-1] |= dict(object_f1=object_f1(truth, found), object_dice=object_dice(truth, found), object_hausdorff=far)
    return pd.DataFrame(rows, index=[s.name for s in samples])

# %% ../nbs/papers/40_glands.ipynb #6994cdf6
def dark_and_filled(
    image, # uint8 (H,W,3)
    sigma:float=2., # of the Gaussian, px
    hole:int=15000, # enclosed areas up to so large are filled, px
    small:int=1200, # smaller pieces are dropped, px
)->np.ndarray: # bool (H,W)
    "Classical baseline: Otsu's threshold on the red channel, holes filled"
    red = ndi.gaussian_filter(rgb2od(check_image(image))[...,0], sigma)
    return fill_small(drop_small(red>threshold_otsu(red) if np.ptp(red) else red>np.inf, small), hole)

plain_masks = {'Otsu and holes':dark_and_filled, 'chance':lambda o: np.random.default_rng(0).random(o.shape[:2])<.5,
    'all gland':lambda o: np.ones(o.shape[:2], bool), 'all background':lambda o: np.zeros(o.shape[:2], bool)}

# %% ../nbs/papers/40_glands.ipynb #2e8c93a4
def centres_layer(
    centres, # (K,D)
): # Conv2d from (B,D,h,w) to (B,K,h,w); highest at the nearest centre
    "Nearest centre as a 1 x 1 convolution that is not trained"
    c = torch.as_tensor(centres, dtype=torch.float32)
    res = nn.Conv2d(c.shape[1], len(c), 1)
    res.weight,res.bias = nn.Parameter(2*c[...,None,None], False),nn.Parameter(-c.square().sum(1), False)
    return res

def kmeans_layer(
    features, # list of (B,D,h,w)
    k:int, # groups
    seed:int=0, # of the start
    most:int=20000, # features that are used
): # as `centres_layer`
    "K-means of the features of many images"
    f = torch.cat([o.movedim(1, -1).flatten(0, 2) for o in features]).float().cpu().numpy()
    f = f[np.random.default_rng(seed).choice(len(f), min(most, len(f)), replace=False)]
    return centres_layer(MiniBatchKMeans(k, n_init=5, random_state=seed).fit(f).cluster_centers_).to(features[0].device)

# %% ../nbs/papers/40_glands.ipynb #6f2891bd
class Groups(nn.Module):
    "Base of the compared methods; untrained, it is the random network"
    trained,sharp = False,1. # is it trained at all? features are multiplied with `sharp` before they are named
    def __init__(self,
        recipe, # `GlandRecipe`
        k:int=2, # groups
    ):
        super().__init__()
        self.r,self.k,self.jitter = recipe,k,HEJitter(recipe.stain_jitter, recipe.stain_shift)
        self.body,self.embed = GlandNet(recipe),nn.Conv2d(recipe.width, recipe.group_dim, 1)
        self.head = nn.Conv2d(recipe.group_dim, k, 1)

    def features(self, x): return F.normalize(self.embed(self.body.features(x))) # float (B,3,H,W) to (B,D,H/2**depth,W/2**depth), of length 1

    @torch.no_grad()
    def regroup(self, batches): # list of float (B,3,S,S)
        "Look at the data and form groups anew"
        self.head = kmeans_layer([self.features(x) for x in batches], self.k, self.r.seed)

    def groups(self, x): return F.interpolate(self.head(self.sharp*self.features(x)), x.shape[-2:], mode='bilinear').softmax(1) # float (B,3,H,W) to (B,K,H,W)

# %% ../nbs/papers/40_glands.ipynb #0588fafb
def balanced(
    scores, # (B,K,h,w)
    labels, # (B,h,w)
): # float ()
    "Cross-entropy in which every group weighs the same, however large it is"
    size = torch.bincount(labels.flatten(), minlength=scores.shape[1]).float()
    return F.cross_entropy(scores, labels, torch.where(size>0, 1/size.clamp_min(1), 0.))

class DeepCluster(Groups):
    "Clusters of all features are the labels of an epoch (Caron et al. 2018)"
    trained = True
    @torch.no_grad()
    def regroup(self, batches):
        near = kmeans_layer([self.features(x) for x in batches], self.k, self.r.seed)
        self.old = [deepcopy(nn.ModuleList([self.body, self.embed, near])).eval().requires_grad_(False)]
        self.head.reset_parameters() # in place: the optimiser holds these tensors

    def forward(self, x): # float (B,3,H,W) to the loss
        body,embed,head = self.old[0]
        with torch.no_grad(): labels = head(F.normalize(embed(body.features(x)))).argmax(1)
        return balanced(self.head(self.features(self.jitter(x))), labels)

# %% ../nbs/papers/40_glands.ipynb #f927536e
def mutual_information(
    p, # float (B,K,h,w), probabilities of groups in one view
    q, # the same in the other
): # float (), at most log(K)
    "Mutual information of the groups of two views (IIC)"
    P = torch.einsum('bkhw,blhw->kl', p, q)
    P = ((P+P.T)/(2*P.sum())).clamp_min(1e-9)
    return (P*(P.log()-P.sum(0, keepdim=True).log()-P.sum(1, keepdim=True).log())).sum()

class IIC(Groups):
    "Groups that say as much as possible about those of another view (Ji et al. 2018)"
    trained,sharp = True,10.
    def regroup(self, batches): pass

    def forward(self, x): # float (B,3,H,W) to the loss
        i = int(torch.randint(8, ()))
        p,q = self.features(self.jitter(x)),turned_back(self.features(turned(self.jitter(x), i)), i)
        return -mutual_information(*(self.head(self.sharp*o).softmax(1) for o in (p,q)))

# %% ../nbs/papers/40_glands.ipynb #8a52807d
class PiCIE(Groups):
    "Each view fits its own clusters and those of the other (Cho et al. 2021)"
    trained = True
    def views(self, x, i): return self.features(self.jitter(x)),turned_back(self.features(turned(self.jitter(x), i)), i)

    @torch.no_grad()
    def regroup(self, batches):
        f,g = zip(*(self.views(x, i%8) for i,x in enumerate(batches)))
        self.head,self.other = kmeans_layer(f, self.k, self.r.seed),kmeans_layer(g, self.k, self.r.seed)

    def forward(self, x): # float (B,3,H,W) to the loss
        f,g = self.views(x, int(torch.randint(8, ())))
        with torch.no_grad(): a,b = self.head(f).argmax(1),self.other(g).argmax(1)
        within = balanced(self.head(f), a)+balanced(self.other(g), b)
        return within+balanced(self.other(f), b)+balanced(self.head(g), a)

# %% ../nbs/papers/40_glands.ipynb #9c59118f
def some_views(
    dls, # of `glands_dls`
    recipe, # `GlandRecipe`
    n:int=8, # batches, at most
)->list: # of float (B,3,S,S)
    "What groups are formed from"
    views = GlandViews(recipe)
    return [views(as_batch(x, dls.device), y)[0] for _,(x,y) in zip(range(n), dls.train)]

class Regroup(Callback):
    "Forms the groups of a `Groups` anew before each epoch"
    def before_epoch(self): self.model.eval().regroup(some_views(self.dls, self.model.r))

# %% ../nbs/papers/40_glands.ipynb #b0970162
group_methods = {'random init':Groups, 'DeepCluster':DeepCluster, 'IIC':IIC, 'PiCIE':PiCIE}

def group_learner(
    system:str, # a key of `group_methods`
    dls, # of `glands_dls`; its masks are not looked at
    recipe, # `GlandRecipe`
    k:int=2, # groups
)->Learner: # after its training
    "Train one of the compared methods"
    if system not in group_methods: raise DataError(f'there is no method {system!r}', fix=f'Choose one of {", ".join(group_methods)}')
    set_seed(recipe.seed)
    model = group_methods[system](recipe, k).to(dls.device)
    cbs = [DeviceAugment(GlandViews(recipe), targets=True), Monitor(), StopOnNaN(), Regroup()]
    learn = Learner(dls, model, lambda out, y: out, opt_func=Adam, lr=recipe.lr, wd=recipe.wd, cbs=cbs)
    with quiet(learn, system):
        if model.trained: learn.fit(recipe.group_epochs, recipe.lr/2)
        else: model.eval().regroup(some_views(dls, recipe))
    return learn

def group_maps(
    model, # `Groups`
    samples, # list of `Sample`
    recipe, # `GlandRecipe`
)->list: # of int (H,W), group of each pixel
    "Groups of whole images"
    device,res = next(model.parameters()).device,[]
    for s in samples:
        prob = sliding_map(model.eval().groups, small_image(s.image, recipe), recipe.crop, recipe.overlap, device=device)
        res.append(grow_map(prob.argmax(0), s.shape, recipe.shrink))
    return res

def name_groups(
    maps, # list of int (H,W)
    samples, # list of annotated `Sample`
    k:int=2, # groups
)->list: # of bool (H,W), where there are glands
    "Masks from groups, with one matching for all images"
    table = sum(cluster_table(m, s.instances>0, 2, k) for m,s in zip(maps, samples))
    return [match_table(table)[m]==1 for m in maps]

# %% ../nbs/papers/40_glands.ipynb #f78e054e
def smooth_colours(image): return ndi.gaussian_filter(rgb2lab(image), (2,2,0)) # uint8 (h,w,3) to Lab (h,w,3), blurred by 2 px

def colour_groups(
    samples, # list of `Sample` to learn from
    recipe, # `GlandRecipe`
    k:int=2, # groups
): # function of uint8 (H,W,3) to int (H,W)
    "K-means of the colours of all images"
    rng,r = np.random.default_rng(recipe.seed),recipe
    seen = [smooth_colours(small_image(s.image, r)).reshape(-1, 3) for s in samples]
    km = MiniBatchKMeans(k, n_init=5, random_state=r.seed).fit(np.concatenate([o[rng.integers(len(o), size=2000)] for o in seen]))
    def groups(image):
        o = smooth_colours(small_image(image, r))
        return grow_map(km.predict(o.reshape(-1, 3)).reshape(o.shape[:2]), image.shape[:2], r.shrink)
    return groups

# %% ../nbs/papers/40_glands.ipynb #1d564772
gland_changes = {'final':{}, 'without spatial loss':dict(spatial=0.), 'without prior':dict(prior=False), 'without diffusion loss':dict(diffusion=0.), 'interior = exterior label':dict(merge=True), 'closed rims only':dict(reach=0), 'two rounds':dict(rounds=2)}
stage_changes = {'stage 1':dict(prior=False), 'stage 1 + closed rims':dict(reach=0), 'stage 1 + prior':{}}
object_systems = 'Otsu and holes', 'stage 1 + prior', 'final', 'two rounds' # whose single glands are measured, too
gland_systems = [*plain_masks, 'colour K-means', *group_methods, *stage_changes, *gland_changes]

def gland_recipe(
    system:str, # one of `gland_systems`
    recipe, # `GlandRecipe`
)->GlandRecipe:
    "The recipe of a row"
    if system not in gland_systems: raise DataError(f'there is no system {system!r}', fix=f'Choose one of {", ".join(gland_systems)}')
    return replace(recipe, **({'random init':dict(imagenet=False)}|stage_changes|gland_changes).get(system, {}))

def glands_fit(
    samples, # list of `Sample` to learn from; their annotation is not opened
    recipe, # `GlandRecipe`
    folder=None, # where clusters, checkpoints and networks are kept
)->Learner: # of `GlandNet`, trained
    "Both stages"
    r = replace(recipe, rounds=1) # so that the first of two rounds is the one that was trained alone
    if folder: check_samples(samples, folder)
    source,place = pseudo_masks(samples, r, folder and Path(folder)/'stage1'),folder and Path(folder)/hashlib.sha256(json.dumps(r.to_dict()).encode()).hexdigest()[:12]
    for i in range(recipe.rounds):
        learn = glands_learner(glands_dls(source, r), r, place and place/f'round {i+1}')
        with quiet(learn, f'round {i+1}'): learn.fit_one_cycle(r.epochs, r.lr)
        if i+1<recipe.rounds: source = [Pseudo(o.name, o.image, next_mask(glands_map(learn, o.image, r), r)) for o in source]
    return learn

def next_mask(
    prob, # float (C,h,w), of `glands_map`
    recipe, # `GlandRecipe`
)->np.ndarray: # uint8 (h,w), an index into `mask_names`
    "The pseudo mask of a further round; with `merge` all of it is exterior"
    exterior = prob[-1]>prob[1] if len(prob)>2 else np.ones(prob.shape[1:], bool)
    return np.where(gland_mask(prob, recipe), np.where(exterior, 2, 1), 0).astype(np.uint8)

# %% ../nbs/papers/40_glands.ipynb #d3742976
def gland_masks(
    system:str, # one of `gland_systems`
    samples, # list of `Sample`; those whose split is 'train' are learnt from
    recipe, # `GlandRecipe`
    folder=None, # as for `glands_fit`
)->tuple: # function of list of `Sample` to list of masks bool (H,W), or a Learner; what the networks started from
    "Train what a row of the table needs"
    r,train = gland_recipe(system, recipe),[s for s in samples if s.split=='train']
    if not train: raise DataError('there is nothing to learn from', fix="Samples to learn from need the split 'train'")
    if system in gland_changes:
        learn = glands_fit(train, r, folder)
        return learn,learn.model.started
    if system in stage_changes:
        return lambda o: [grow_map(p.mask>0, s.shape, r.shrink) for p,s in zip(pseudo_masks(o, r, folder and Path(folder)/'stage1'), o)],None
    if system in group_methods:
        model = group_learner(system, glands_dls([Pseudo(s.name, im := small_image(s.image, r), np.zeros(im.shape[:2], np.uint8)) for s in train], r), r).model
        return lambda o: name_groups(group_maps(model, o, r), o),model.body.started
    if system=='colour K-means':
        groups = colour_groups(train, r)
        return lambda o: name_groups([groups(s.image) for s in o], o),None
    return lambda o: [plain_masks[system](s.image) for s in o],None

# %% ../nbs/papers/40_glands.ipynb #330db800
def gland_row(
    system:str, # one of `gland_systems`
    samples, # list of annotated `Sample`
    recipe, # `GlandRecipe`
    dataset:str='GlaS', # name, for the ledger
    folder=None, # as for `glands_fit`
    scale=None, # of the run, for the ledger
    results=None, # folder of the ledger
)->dict: # split: DataFrame of `glands_evaluate`
    "Train, measure and write down one system"
    start,done = time.time(),{}
    masks,started = gland_masks(system, samples, recipe, folder)
    r = gland_recipe(system, recipe)
    for split in dict.fromkeys(s.split for s in samples):
        part = [s for s in samples if s.split==split]
        made = None if isinstance(masks, Learner) else iter(masks(part))
        table = glands_evaluate(masks if made is None else lambda _: next(made), part, r, system in object_systems)
        about = dict(scale=scale, seed=r.seed, device=get_device(), seconds=time.time()-start, folder=results, recipe=r.to_dict(), started=started)
        pixels = {k:[int(v) for v in row] for k,row in zip(table.index, table[count_names].to_numpy())}
        save_result('glands', system, dataset, split, 'miou', pooled_miou(table).value, table.miou.round(4).to_dict(),
            pixels=pixels, grades=table.grade.dropna().to_dict(), **about)
        if system in object_systems: save_scores(table[score_names[1:]], 'glands', system, dataset, split, **about)
        done[split] = table
    return done

def gland_grid(
    systems, # list, of `gland_systems`
    samples, # list of annotated `Sample`
    recipe, # `GlandRecipe`
    dataset:str='GlaS', # name, for the ledger
    folder=None, # as for `glands_fit`
    scale=None, # of the run, for the ledger
    results=None, # folder of the ledger
)->list: # of the systems that were run
    "All systems that are not in the ledger yet"
    run,scale,splits = [],get_scale(scale),{s.split for s in samples}
    if not splits: raise DataError('there is nothing to measure on')
    for system,r in [(o, gland_recipe(o, recipe)) for o in systems]:
        if is_done('glands', system, [(dataset,o) for o in splits], scale, r.seed, 'object_hausdorff' if system in object_systems else 'miou', results, r): continue
        print(f'{system}, seed {r.seed}')
        gland_row(system, samples, recipe, dataset, folder, scale, results)
        run.append(system)
    return run

# %% ../nbs/papers/40_glands.ipynb #534fd1d3
def gland_board(
    split:str='test', # part of the data
    dataset:str='GlaS', # name of the data set
    scale:str='small', # scale of the runs
    folder=None, # of the ledger
)->pd.DataFrame: # a row per system, the best on top: miou with its interval, of benign and malignant images, object scores, images, seeds
    "All systems side by side"
    df = ledger.results('glands', folder)
    df = df[(df.dataset==dataset)&(df.split==split)&(df.scale==scale)]
    if not len(df): raise DataError(f'nothing was measured on {dataset} {split} at {scale}', fix='Run the slow cells: HISTOLAB_FLAGS=slow histolab-nb run glands --data DIR')
    rows = []
    for system,runs in df.groupby('system'):
        own,means,row = runs[runs.metric=='miou'],runs.groupby('metric').value.mean(),dict(system=system)
        px = {k:np.mean([o[k] for o in own.pixels if k in o], 0) for o in own.pixels for k in o}
        ci = interval(list(px.values()), mean_iou) if len(px)>1 else Interval(means.miou, np.nan, np.nan)
        row |= dict(miou=means.miou, interval=f'{ci.low:.3f} to {ci.high:.3f}')
        for grade in ('benign','malignant'):
            some = [px[k] for k,v in own.grades.iloc[0].items() if v==grade]
            if some: row[grade] = mean_iou(some)
        rows.append(row | {k:means.get(k) for k in score_names[1:]} | dict(images=len(px), seeds=own.seed.nunique()))
    return pd.DataFrame(rows).set_index('system').sort_values('miou', ascending=False).round(3)

# %% ../nbs/papers/40_glands.ipynb #c63fda0d
def gland_samples(
    path=None, # folder of GlaS; `data_folder('glas')` if none
)->L: # of `Sample`, the training images first
    "GlaS as the protocol needs it"
    return L(sorted(glas(path), key=lambda s: s.split!='train'))

# %% ../nbs/papers/40_glands.ipynb #53afc201
__all__ = [o for o in globals() if not o.startswith('_')] # all that the notebook uses, for `from histolab_nb.glands import *`
