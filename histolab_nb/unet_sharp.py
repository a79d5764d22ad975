r"""Which pixels are nuclei, and of what kind? A network whose every step sees all its scales, gates between them, a loss for classes that are rare, and a look at what that loss really did.

A pathologist does not only count nuclei; it matters whether they belong to a tumour, to the immune system or to the tissue in between. The class of a nucleus is seen at two scales at once: its outline and its texture are fine, the tissue around it is coarse. A U-Net joins the two one resolution after the other. U-Net# gives every step of its decoder **all** scales (`UnetSharp`), lets *attention gates* decide what may pass (`AttentionGate`), and widens the view at the deepest point (`ASPP`).

Around it: stain normalisation of a whole data set (`normalise_samples`), augmentation of image and mask in step (`SharpViews`), the Focal Tversky loss in the form that the paper prints and the one that its code ran (`FocalTversky`), the optimiser AdaBound (`adabound`), and an encoder that is frozen at first (`FreezeEncoder`). `unet_sharp_dls`, `unet_sharp_learner`, `unet_sharp_predict` and `unet_sharp_evaluate` are the way through; `sharp_row` and `sharp_grid` measure it; U-Net, U-Net++, UNet 3+ and DeepLabV3+ can be run under the same protocol.

### The recipe

Every number of the method is a field of `SharpRecipe`. A star marks what the paper leaves open; there we take what its code does. *Ours* marks what neither has.

`sharp_nets` are the networks that can be run under one protocol: U-Net#, three ways of taking something away from it, and three standard networks of segmentation-models-pytorch. `UNet 3+` has neither gates nor ASPP. It means the connections of UNet 3+, without its deep supervision and its classification branch.

### Class maps

A class map is easily spoilt. Resize it with the usual interpolation, and between class 0 and class 5 there are pixels of classes 1 to 4 that nobody drew: rims of four other kinds around every gland cell. (The code of the paper interpolates the *numbers of nuclei*; see the table at the end.) `class_map` opens the class map of a sample and refuses what cannot be one: numbers that are not whole, classes that the data set does not have, and maps in which most nuclei are of several classes.

### Stain normalisation of a whole data set

Before anything else the paper brings all tiles to common colours by Macenko's method. `Macenko` of `stain` does it for a tile; `normalise_samples` does it for thousands: on all cores, kept as files in a folder so that a job that was killed goes on, and with a table that says which tiles could not be normalised and why. Those are passed through as they are: a tile of glass or of one colour has no two dyes to find.

The files are named after the pixels of the image, so another image of the same name is not mistaken for it. Each core takes an image of its own; meanwhile the threads inside of NumPy's linear algebra are switched off, for two layers of threads get in each other's way. `benchmarks/unet_sharp.py` measures what the cores gain.

The paper's list is long: crops, quarter turns, flips and transposition, noise, motion and median blur, shift, scale and rotation, "various distortions", sharpness, contrast, brightness. All of it is here, in batches on the device. Whatever moves pixels is one resampling for image and mask (`Warp` of `augment`), in which the mask takes the nearest pixel: a class is never interpolated. Whatever changes colours is for the image alone. `OneOf` chooses one of several for each image.

`SharpViews` is the whole list; "Gaussian noise and additive Gaussian noise" we read as additive and multiplicative. kornia supplies noise, blurs and sharpness. The paper gives no strengths, so those of the single steps are ours. So is `stain_jitter`: Macenko makes images alike, but not all alike, and what it leaves should not be learnt.

`ScaleInput` brings features of any scale to the size of a node: finer ones by maximum pooling, coarser ones by bilinear enlargement; then a 3 x 3 convolution to `width` channels, Mish, batch norm. For the bridge, which has `width` channels already, the convolution is left out, as in the paper's code.

### Attention gates

A fine scale is full of edges, most of them not of nuclei. A gate looks at the fine features $x$ and at what the decoder already knows from the next coarser level, $g$, and computes for each pixel one number between 0 and 1 with which $x$ is multiplied:

$$\hat x = x\cdot\sigma\big(\psi(\mathrm{ReLU}(W_x x+W_g g))\big).$$

$W_x$, $W_g$ and $\psi$ are 1 x 1 convolutions, each with a batch norm.

### The bridge

At the deepest point a pixel covers 32 x 32 px of the image. *Atrous spatial pyramid pooling* looks around from there: a 1 x 1 convolution and 3 x 3 convolutions whose taps lie 6, 12 and 18 pixels apart, side by side. The paper's code has a fifth branch, the mean over the image, which its text does not have; `image_pool` turns it on. Notice that the deepest map of a 224 px image has 7 x 7 pixels. How many taps of such a convolution, its middle one aside, fall inside of the map at all?

### A node of the decoder

`SharpNode` is one step of the way up. It collects the encoder's features of its own and all finer scales, the decoder's of all coarser ones, and the bridge: always five inputs. Encoder inputs pass a gate, which is led by the next coarser input. The five are put side by side and mixed by one convolution.

### The network

`UnetSharp` puts it together: an encoder of timm with its five scales, the bridge, four nodes from the coarsest to the finest, and a last convolution at the resolution of the image. It returns scores; the softmax is in the loss. With `aspp=False` the deepest scale enters each node through a 3 x 3 convolution of its own, as in UNet 3+.

`sharp_diagram` draws which input of a network goes where, from its modules.

`freeze_norms` takes the scale and shift of the encoder's batch norms out of the training, as the paper does for its whole length; their running means still follow the data. That has a trap for networks that start at random: timm, as is usual, gives the last batch norm of each residual block the scale 0, so that the block does nothing at first. Frozen at 0 it would do nothing for good, and hardly anything in the encoder would ever learn. `open_norms` sets these scales to 1.

`sharp_net` makes the network that a recipe asks for, one of `sharp_nets`, with weights where they can be had.

### The Tversky index

For one class, let $p$ be its probability at each pixel and $t$ its truth, 1 or 0. The *Tversky index* is Dice with two kinds of error that weigh differently (Eq. 2, which calls it a loss):

$$TI=\frac{\sum pt}{\sum pt+\beta\sum p(1-t)+(1-\beta)\sum(1-p)t}.$$

With $\beta=0.5$ it is Dice. The paper takes $\beta=0.7$ and gives it to the **false positives**; the paper that it cites for the loss gives 0.7 to the misses. So this loss would rather miss a nucleus than invent one. Four pixels, the first two of the class: hits add up to 1.7, false alarms to 0.5, misses to 0.3. And below them a pixel that is invented, which costs more than one that is missed.

### Focal Tversky, class by class

Eq. 3 sums over the classes (it prints $FL_c$ where $TI_c$ is meant):

$$FTL=\sum_c(1-TI_c)^\gamma,\qquad\gamma=\tfrac43.$$

The background is one of the classes. Each counts the same, however few pixels it has. A class that is in no picture of the batch has $TI_c=0$ whatever the network says, a constant without gradient, so it is left out. The code that the paper cites has the exponent $1/\gamma$, and a larger gradient near the end; 4/3 flattens the loss there.

### ... and pooled

The code that made the paper's numbers does something else. It flattens the probabilities of *all* classes into one long vector and the truth likewise, and computes one index. `FocalTversky` does either.

### AdaBound

Adam divides each step by the recent size of the gradient. AdaBound does the same, but the factor that results is kept between two bounds which close in on a constant while the steps go on (Luo et al. 2019):

$$\text{final}\Big(1-\frac1{\gamma t+1}\Big)\;\le\;\frac{\alpha}{\sqrt{v_t}}\;\le\;\text{final}\Big(1+\frac1{\gamma t}\Big).$$

$v_t$ is the recent mean of the squared gradient. It starts as Adam and ends as SGD with the rate *final*. `adabound` gives fastai the optimiser of `pytorch_optimizer` through `OptimWrapper`; `adabound_bounds` are the two curves.

### First the decoder

The encoder knows pictures already; the decoder starts at random, and its first wild gradients would spoil what the encoder knows. `FreezeEncoder` keeps the encoder fixed for some epochs and then trains all of it but the scales and shifts of its batch norms, whose running statistics follow the data all the time. It counts the epochs of each `fit`, so a second `fit` freezes again.

### Loaders, score, learner

`unet_sharp_dls` takes samples: those whose split is *train* are learnt from, those whose split is *val* are watched, as fixed squares without augmentation. The paper's code resizes test images of 256 px to 224, which makes nuclei smaller than those it was trained with; here squares of 224 px are cut, as in training.

`ForegroundDice` is the score that we watch: Dice of each class over all pixels of the validation squares, averaged over the classes of nuclei that occur.

`training_only` leaves out of a recipe what does not change the training, so that another overlap is no reason to train again. `unet_sharp_learner` puts all of it into a fastai `Learner`. On a GPU it trains in mixed precision. With a `folder` the weights of the best epoch by validation loss are kept there and loaded at the end, training stops early, and a killed run goes on. Without one it is the last epoch that counts, and `patience` does nothing.

`sharp_train` trains it as the recipe says: at a constant rate as in the paper, or with `anneal` at one that falls to nothing at the end. AdaBound's bounds fall with the rate. With few images and a random start this steadies the last epochs; it is ours.

`sharp_map` gives the probability of each class for each pixel of an image of any size: the image is normalised as in training, brought to the recipe's resolution, and predicted in overlapping windows, which are blended.

`class_instances` makes nuclei of a class map: connected pieces of one class. Touching nuclei of one class become one; the paper does not part them, since its score is counted in pixels. So the number of pieces is no number of nuclei where they touch. Pieces below `min_size` are dropped.

`unet_sharp_predict` does all of it for an image. For a slide it finds the dyes once, on a small picture of the whole slide, reads tiles at the recipe's `mpp` where there is tissue, and returns a map of the slide.

A large picture is better outlined than mapped. `unet_sharp_nuclei` outlines and measures the pieces of each class window by window through `segment_image`; each nucleus has a class, and `save_nuclei` writes outlines that QuPath shows with the names and colours of the classes.

`unet_sharp_evaluate` returns a row for each image and class: pixels that are right (tp), wrongly called so (fp) and missed (fn), Dice and IoU, and the PQ of the nuclei of this class, which is left out (NaN) where the image has none, as PanNuke does. It takes a model, or any function from an image to a class map.

### Three averages

`class_summary` pools the pixels of all images for each class, as the paper does, and then gives three averages. *Macro* is the mean over the classes of nuclei that occur. *Micro* first adds up the pixels of all of them, so that it is the score of the frequent classes. The third is macro without the class *dead*. The paper prints an average of 0.5593. From its own table the mean over the five classes is 0.412, and over the four without *dead* 0.515; its code adds up pixels. A class that is never found hardly counts in that.

### What is there without a network

A nucleus has a colour, and the tissue around it, too. `colour_forest` is the classical pixel classifier: a random forest that sees the optical densities of a pixel, blurred at three widths, and nothing else. It is trained on the same images.

`sharp_samples` gives the splits of the protocol. PanNuke: folds 1, 2 and 3 are train, val and test. CoNSeP: of the 27 training images 20 are learnt from and 7 are *val*; where the official test images are there, they are *test*. The epoch is chosen on val, so numbers on val are a little too good, for all systems alike. CoNSeP does not say which images are of one patient, so one may be on both sides.

A row of the table is one system, a change of the recipe; what `U-Net#` alone means is what the recipe says, so at `small` it has `balance`. `sharp_fit` trains it, `sharp_row` measures it on all splits but *train* and writes the ledger, `sharp_grid` runs what is not there yet. `sharp_board` collects: Dice pooled over pixels with its 95 % interval from a bootstrap over images, and the macro average, the single classes, and the mean PQ.

The second call found the training finished and went on from there. What a row writes into the ledger:

Docs: https://histolab-nb.github.io/histolab_nb/papers/unet_sharp.html.md"""

# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/papers/50_unet_sharp.ipynb.

# %% auto #0
__all__ = ['sharp_rules', 'sharp_nets', 'sharp_losses', 'tiny_scale', 'small_scale', 'Prepared', 'Trained', 'ClassSegmentation',
           'sharp_changes', 'sharp_systems', 'SharpRecipe', 'mixed_share', 'class_map', 'normalise_samples', 'prepare',
           'OneOf', 'SharpViews', 'ScaleInput', 'AttentionGate', 'ASPP', 'SharpNode', 'UnetSharp', 'sharp_diagram',
           'open_norms', 'freeze_norms', 'sharp_net', 'trained_parameters', 'tversky_index', 'FocalTversky',
           'sharp_loss', 'adabound', 'adabound_bounds', 'FreezeEncoder', 'unet_sharp_dls', 'ForegroundDice',
           'training_only', 'unet_sharp_learner', 'sharp_train', 'as_trained', 'sharp_map', 'class_instances',
           'slide_stain', 'unet_sharp_predict', 'unet_sharp_nuclei', 'class_rows', 'unet_sharp_evaluate',
           'class_summary', 'colour_features', 'colour_forest', 'image_dice', 'sharp_samples', 'sharp_recipe',
           'sharp_fit', 'sharp_row', 'save_sharp', 'sharp_grid', 'pooled_dice', 'sharp_board']

# %% ../nbs/papers/50_unet_sharp.ipynb #ab848ba0
import hashlib, json, math, os, tempfile, time, numpy as np, pandas as pd, segmentation_models_pytorch as smp, timm, torch
import kornia.augmentation as K
from kornia.enhance import sharpness
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from PIL import Image
from fastai.basics import *
from fastai.callback.schedule import *
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.callback.training import GradientAccumulation
from pytorch_optimizer import AdaBound
from scipy import ndimage as ndi
from skimage.measure import label
from sklearn.ensemble import RandomForestClassifier
from threadpoolctl import threadpool_limits
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

# %% ../nbs/papers/50_unet_sharp.ipynb #0bef8af7
sharp_rules = dict( # field: what it must be, and in words
    crop=(lambda o: o>=32 and o%32==0, 'A multiple of 32, since the network halves it five times: 96, 128, 224 ...'),
    zoom=(lambda o: o>=1, 'From 1'), overlap=(lambda o: 0<=o<1, 'From 0, below 1'), beta=(lambda o: 0<=o<=1, 'From 0 to 1'), focal=(lambda o: o>0, 'Above 0'),
    **{k:(lambda o: 0<=o<=1, 'From 0 to 1') for k in ('balance','noise','blur','move','bend','colour','stain_jitter','anneal')},
    **{k:(lambda o: o>=1, 'From 1') for k in ('shrink','window','width','batch_size','accumulate','epochs','patience','trees')},
    **{k:(lambda o: o>=0, 'From 0') for k in ('freeze_epochs','batches','min_size')}, **{k:(lambda o: o>0, 'Above 0') for k in ('lr','final_lr','bound','mpp')})

# %% ../nbs/papers/50_unet_sharp.ipynb #8bcaaaf9
@dataclass
class SharpRecipe(Recipe):
    "Every number of U-Net#; a star marks what the paper leaves open"
    shrink:int = 1 # all images are made smaller by this factor first (ours, for small machines)
    macenko:bool = True # normalise the stain of each image first?
    window:int = 256 # side of the squares that are cut from the images, px
    crop:int = 224 # side of the network's input, px
    net:str = 'U-Net#' # a key of `sharp_nets`
    encoder:str = 'resnext101_32x4d.fb_swsl_ig1b_ft_in1k' # a name of timm's; SWSL is in the name
    pretrained:bool = True # with the weights of that name, where they can be had?
    width:int = 64 # channels of each of the five inputs of a decoder node *
    image_pool:bool = False # a fifth branch of the ASPP, the mean over the image? The paper's code has it, its text does not
    loss:str = 'per class' # 'per class' (Eq. 3), 'pooled' (what the code does), 'cross-entropy + Dice'
    beta:float = 0.7 # weight of false positives in the Tversky index; misses weigh 1-beta
    focal:float = 4/3 # exponent of the loss, gamma of Eq. 3
    balance:float = 0. # share of squares that hold a pixel of a class that is drawn first (ours)
    zoom:float = 1. # squares show 1/zoom to zoom times as much of the image (ours)
    noise:float = 0.2 # probability of noise *
    blur:float = 0.2 # probability of motion or median blur *
    move:float = 0.2 # probability of shift, scale and rotation *
    bend:float = 0.3 # probability of a distortion *
    colour:float = 0.3 # probability of a change of sharpness, contrast or brightness *
    stain_jitter:float = 0. # haematoxylin and eosin times 1-x .. 1+x (ours)
    lr:float = 1e-4 # Adam's step size, with which AdaBound starts
    final_lr:float = 0.1 # SGD's step size, with which AdaBound ends
    bound:float = 1e-3 # how soon AdaBound becomes SGD, gamma of Table I
    anneal:float = 0. # share of the training, at its end, in which the step size falls to nothing (ours)
    freeze_epochs:int = 5 # epochs in which the encoder is frozen
    epochs:int = 50 # at most; the code has 150
    patience:int = 20 # epochs without a lower validation loss after which training stops *
    batch_size:int = 8 # squares a batch *
    accumulate:int = 8 # batches a step *
    batches:int = 0 # batches in an epoch; 0: as many as cover all images once *
    overlap:float = 0.5 # of the windows in prediction, share of their side *
    min_size:int = 0 # smaller objects are no nuclei, px of the image (ours) *
    trees:int = 100 # of the colour baseline (ours)
    mpp:float = 0.25 # µm/px of an image, at which slides are read
    seed:int = 42 # of everything random

    def __post_init__(self):
        choices = dict(net=tuple(sharp_nets), loss=sharp_losses)
        for k,o in choices.items():
            if getattr(self, k) not in o: raise DataError(f'{k} cannot be {getattr(self, k)!r}', fix=f'Choose one of {", ".join(o)}')
        for k,(fits,words) in sharp_rules.items():
            if not fits(getattr(self, k)): raise DataError(f'{k} cannot be {getattr(self, k)!r}', fix=words)
        if self.batch_size<2 and (self.image_pool or self.net=='DeepLabV3+'): raise DataError(f'batch_size cannot be {self.batch_size!r}', fix='From 2, since the batch norm of the image pooling sees one value an image')
        if self.window<self.crop: raise DataError(f'window cannot be {self.window!r}', fix=f'At least as large as the crop, {self.crop}')

# %% ../nbs/papers/50_unet_sharp.ipynb #cc6d6c0c
sharp_nets = {'U-Net#':dict(gates=True, aspp=True), 'without gates':dict(gates=False, aspp=True), 'without ASPP':dict(gates=True, aspp=False),
    'UNet 3+':dict(gates=False, aspp=False), 'U-Net':smp.Unet, 'U-Net++':smp.UnetPlusPlus, 'DeepLabV3+':smp.DeepLabV3Plus}
sharp_losses = 'per class', 'pooled', 'cross-entropy + Dice'

# %% ../nbs/papers/50_unet_sharp.ipynb #a35773d0
tiny_scale = dict(window=80, crop=64, encoder='resnet10t', pretrained=False, width=8, lr=3e-3, final_lr=.5, freeze_epochs=0, epochs=8, batches=30, anneal=.5,
    bend=.2, batch_size=8, accumulate=1, balance=.5, overlap=.25, mpp=.5, min_size=6, trees=20)
small_scale = dict(shrink=2, window=160, crop=128, encoder='resnet18', pretrained=False, width=16, lr=1e-3, freeze_epochs=0, epochs=24, batches=50, anneal=.5,
    bend=.2, batch_size=8, accumulate=1, balance=.5, zoom=1.25, stain_jitter=.25, min_size=20, trees=50)
SharpRecipe._scales = dict(tiny=tiny_scale, small=small_scale)

# %% ../nbs/papers/50_unet_sharp.ipynb #42abad34
def mixed_share(
    classes, # whole numbers (H,W), 0 is background
    instances, # int32 (H,W), 0 is background
)->float: # in [0,1]
    "Share of the nuclei whose pixels are not all of one class"
    ids = np.unique(instances)
    ids = ids[ids>0]
    if not len(ids): return 0.
    return float((ndi.minimum(classes, instances, ids)!=ndi.maximum(classes, instances, ids)).mean())

def class_map(
    sample, # `Sample` with classes
)->np.ndarray: # uint8 (H,W), 0 is background
    "The class map of a sample, checked"
    m,n = sample.classes,len(sample.class_names)
    if m is None: raise DataError(f'{sample.name} has no class map', sample.path, 'U-Net# learns classes: use consep, pannuke or phantom_nuclei')
    m = as_labels(m, sample.path, floats=True)
    if m.max()>n: raise DataError(f'{sample.name} has a class {m.max()}, and the classes are 0 (background) to {n}', sample.path, 'Give the names of all classes as class_names, or merge some')
    if n>1 and sample.load_instances and mixed_share(m, sample.instances)>.5:
        raise DataError(f'most nuclei of {sample.name} are of several classes', sample.path, 'Was the class map resized with interpolation? Resize it with the nearest neighbour')
    return m.astype(np.uint8)

# %% ../nbs/papers/50_unet_sharp.ipynb #57b01b1b
def _kept(file):
    try: return read_rgb(file)
    except DataError as e: raise DataError(e.what, file, 'Delete it, and it is made again') from None

def _normalised(sample, folder, how):
    "Make, or find, the normalised image of a sample: (the sample, what went wrong)"
    image = sample.image
    h = hashlib.blake2b(image.tobytes()+json.dumps([image.shape, how], sort_keys=True, default=repr).encode(), digest_size=8).hexdigest()
    file = folder and folder/f'{h}.png'
    if file and file.with_suffix('.json').exists(): return sample,read_json(file.with_suffix('.json'))
    if not (file and file.exists()):
        m = Macenko(**how)
        try: image = m.fit(image).transform(image)
        except DataError as e:
            if file: write_json(file.with_suffix('.json'), e.what)
            return sample,e.what
        if not file: return replace(sample, load_image=partial(np.asarray, image)),''
        with atomic_path(file) as p: Image.fromarray(image).save(p, 'png', compress_level=1)
    return replace(sample, load_image=partial(_kept, file)),''

# %% ../nbs/papers/50_unet_sharp.ipynb #cb085df3
def normalise_samples(
    samples, # list of `Sample`
    folder=None, # where the images are kept; in memory if none
    workers:int=0, # threads; as many as there are cores if 0
    progress:bool=True, # show a progress bar
    **how, # handed to `Macenko`: alpha, beta, keep ...
)->tuple: # L of `Sample`; DataFrame with a row a tile that could not be normalised: name, tissue, why
    "Macenko's normalisation of a data set, each image by its own colours"
    folder = folder and out_folder(folder)
    with threadpool_limits(1, 'blas'), ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        done = list(tqdm(pool.map(lambda s: _normalised(s, folder, how), samples), total=len(samples), desc='Macenko', unit='image', disable=not progress))
    bad = [dict(name=s.name, tissue=s.organ, why=why) for s,why in done if why]
    if bad: print(f'{len(bad)} of {len(samples)} images could not be normalised and stay as they are')
    return L(s for s,_ in done),pd.DataFrame(bad, columns=['name','tissue','why'])

# %% ../nbs/papers/50_unet_sharp.ipynb #6d776be3
Prepared = namedtuple('Prepared', 'name image classes') # text; uint8 (h,w,3), uint8 (h,w)

def prepare(
    samples, # list of `Sample` with classes
    recipe, # `SharpRecipe`
    folder=None, # where normalised images are kept; in memory if none
)->L: # of `Prepared`
    "Images and class maps at the recipe's resolution"
    if recipe.macenko: samples = normalise_samples(samples, folder, progress=len(samples)>50)[0]
    small = [(s.name, shrink_image(s.image, recipe.shrink), shrink_map(class_map(s), recipe.shrink)) for s in samples]
    return L(Prepared(*o) for o in small)

# %% ../nbs/papers/50_unet_sharp.ipynb #8eceab76
class OneOf(nn.Module):
    "One of several augmentations for each image, or none"
    def __init__(self,
        *some, # modules or functions of float (B,3,H,W) in [0,1]
        p:float=.3, # probability that an image is changed at all
    ):
        super().__init__()
        self.some,self.p = nn.ModuleList(some),p

    def forward(self, x): # float (B,3,H,W) in [0,1], the same out
        which = torch.randint(len(self.some), (len(x),), device=x.device).masked_fill(torch.rand(len(x), device=x.device)>=self.p, -1)
        x = x.clone()
        for i,f in enumerate(self.some):
            at = which==i
            if at.any(): x[at] = f(x[at]).clamp(0, 1).to(x.dtype)
        return x

# %% ../nbs/papers/50_unet_sharp.ipynb #822af6e5
class _Sharper(nn.Module):
    "Sharper by a random amount; 1 would leave the image as it is"
    def forward(self, x): return sharpness(x, 1.2+.8*torch.rand(len(x), device=x.device))

class _Times(nn.Module):
    "Multiplicative noise: each pixel times 1 +- 10 %"
    def forward(self, x): return x*(1+.2*(torch.rand_like(x)-.5))

class SharpViews(nn.Module):
    "Image and mask in step: the paper's augmentations"
    def __init__(self,
        recipe, # `SharpRecipe`
    ):
        super().__init__()
        r = recipe
        self.warp = Warp(size=r.crop, zoom=r.zoom, turn=True, move=r.move, bend=r.bend)
        only = dict(hue=0., saturation=0., p=1.)
        self.stain = HEJitter(r.stain_jitter, 0.) if r.stain_jitter else nn.Identity()
        contrast,brightness = ColourJitter(brightness=0., contrast=.2, **only),ColourJitter(brightness=.2, contrast=0., **only)
        self.colour = OneOf(_Sharper(), contrast, brightness, p=r.colour)
        self.noise = OneOf(K.RandomGaussianNoise(std=.03, p=1.), _Times(), p=r.noise)
        self.blur = OneOf(K.RandomMotionBlur((3,7), (0.,360.), (-1.,1.), 'reflect', p=1.), K.RandomMedianBlur((3,3), p=1.), p=r.blur)

    @torch.no_grad()
    def forward(self, x, y): # float (B,3,W,W) in [0,1] and int64 (B,W,W) to (B,3,S,S) and (B,S,S)
        x,y = self.warp(x, y)
        return self.noise(self.blur(self.colour(self.stain(x)))),y

# %% ../nbs/papers/50_unet_sharp.ipynb #f9aaa5b1
class ScaleInput(nn.Module):
    "Features of any scale as one of the inputs of a node"
    def __init__(self,
        inp:int, # channels that come in
        out:int, # channels that go out
        conv:bool=True, # convolve? if not, `inp` is `out`
    ):
        super().__init__()
        self.conv,self.norm = nn.Conv2d(inp, out, 3, padding=1) if conv else nn.Identity(),nn.BatchNorm2d(out)

    def forward(self, x, size): # float (B,inp,h,w) and (H,W), to (B,out,H,W)
        if x.shape[-1]>size[-1]: x = F.max_pool2d(x, x.shape[-1]//size[-1])
        elif x.shape[-1]<size[-1]: x = F.interpolate(x, size=size, mode='bilinear')
        return self.norm(F.mish(self.conv(x)))

# %% ../nbs/papers/50_unet_sharp.ipynb #b5e50788
def _one(inp, out): return nn.Sequential(nn.Conv2d(inp, out, 1), nn.BatchNorm2d(out))

class AttentionGate(nn.Module):
    "Weaken features where the coarser level sees nothing"
    def __init__(self,
        width:int, # channels of both inputs
    ):
        super().__init__()
        self.x,self.g,self.psi = _one(width, width),_one(width, width),_one(width, 1)

    def weight(self, x, g): return self.psi(F.relu(self.x(x)+self.g(g))).sigmoid() # float (B,C,H,W) twice, to (B,1,H,W) in (0,1)

    def forward(self, x, g): return x*self.weight(x, g) # float (B,C,H,W) twice, to (B,C,H,W)

# %% ../nbs/papers/50_unet_sharp.ipynb #0310cb66
class ASPP(nn.Module):
    "Atrous spatial pyramid pooling"
    def __init__(self,
        inp:int, # channels that come in
        out:int, # channels of each branch, and that go out
        rates=(6,12,18), # distance of the taps of the 3 x 3 branches, px of the map; 32 px of the image each
        pool:bool=False, # a branch that sees the mean over the image?
    ):
        super().__init__()
        def branch(c, k, d=1): return nn.Sequential(nn.Conv2d(c, out, k, padding=d*(k//2), dilation=d, bias=False), nn.BatchNorm2d(out), nn.Mish())
        self.branches = nn.ModuleList([branch(inp, 1), *(branch(inp, 3, d) for d in rates)])
        self.pool = branch(inp, 1) if pool else None
        self.project = branch(out*(len(rates)+1+pool), 1)

    def forward(self, x): # float (B,inp,h,w) to (B,out,h,w)
        seen = [f(x) for f in self.branches]
        if self.pool is not None: seen.append(self.pool(x.mean((2,3), keepdim=True)).expand_as(seen[0]))
        return self.project(torch.cat(seen, 1))

# %% ../nbs/papers/50_unet_sharp.ipynb #51207135
class SharpNode(nn.Module):
    "A decoder node that sees all scales"
    def __init__(self,
        level:int, # 0 at half the resolution, to 3
        channels, # of the encoder's scales: five whole numbers, finest first
        width:int, # of each input
        gates:bool=True, # attention gates on the encoder's inputs?
        bridge:bool=True, # is there a bridge of `width` channels? if not, the deepest scale comes through a convolution of its own
    ):
        super().__init__()
        n = len(channels)-1
        self.enc = nn.ModuleList(ScaleInput(c, width) for c in channels[:level+1])
        self.dec = nn.ModuleList(ScaleInput((n+1)*width, width) for _ in range(level+1, n))
        self.deep = ScaleInput(width if bridge else channels[-1], width, conv=not bridge)
        self.gates = nn.ModuleList(AttentionGate(width) for _ in self.enc) if gates else None
        self.mix = ScaleInput((n+1)*width, (n+1)*width)

    def forward(self, enc, dec, deep): # lists of features of own and finer, and of coarser scales; the bridge: to (B,5*width,H,W)
        size = enc[-1].shape[2:]
        e,d = ([f(o, size) for f,o in zip(fs, xs)] for fs,xs in ((self.enc,enc), (self.dec,dec)))
        d.append(self.deep(deep, size))
        if self.gates is not None: e = [gate(o, d[0]) for gate,o in zip(self.gates, e)]
        return self.mix(torch.cat(e+d, 1), size)

# %% ../nbs/papers/50_unet_sharp.ipynb #635f0c5e
class UnetSharp(nn.Module):
    "U-Net#: full-scale skips, gates, ASPP"
    def __init__(self,
        classes:int, # that go out, with background
        encoder:str='resnext101_32x4d', # a name of timm's
        width:int=64, # channels of each input of a node
        gates:bool=True, # attention gates?
        aspp:bool=True, # ASPP as the bridge?
        image_pool:bool=False, # with a branch for the mean over the image?
        pretrained:bool=False, # with the weights of that name?
    ):
        super().__init__()
        self.encoder = timm.create_model(encoder, features_only=True, pretrained=pretrained)
        channels = self.encoder.feature_info.channels()
        if self.encoder.feature_info.reduction()!=[2, 4, 8, 16, 32]:
            raise DataError(f'{encoder!r} has the scales {self.encoder.feature_info.reduction()}', fix='Take an encoder with five scales from 1/2 to 1/32, such as a ResNet or an EfficientNet')
        self.bridge = ASPP(channels[-1], width, pool=image_pool) if aspp else nn.Identity()
        self.nodes = nn.ModuleList(SharpNode(i, channels, width, gates, aspp) for i in range(4))
        self.head = nn.Conv2d(5*width, classes, 3, padding=1)

    def decoded(self, x): # float (B,3,H,W) to the four decoder features, finest first
        if any(n%32 for n in x.shape[2:]): raise DataError(f'the sides of {tuple(x.shape[2:])} are no multiples of 32', fix='unet_sharp_predict takes images of any size; crop or pad others')
        *enc,deep = self.encoder(x)
        deep,dec = self.bridge(deep),[]
        for i in (3, 2, 1, 0): dec = [self.nodes[i](enc[:i+1], dec, deep), *dec]
        return dec

    def forward(self, x): # float (B,3,H,W) in [0,1], sides multiples of 32, to scores (B,classes,H,W)
        return self.head(F.interpolate(self.decoded(x)[0], scale_factor=2, mode='bilinear'))

# %% ../nbs/papers/50_unet_sharp.ipynb #e605568d
def sharp_diagram(
    net=None, # `UnetSharp`; a small one if none
    ax=None, # axes to draw on; new ones if none
): # matplotlib axes
    "The connections of a U-Net#"
    from matplotlib import pyplot as plt
    net = net or UnetSharp(6, 'resnet10t', 4)
    ax = ax or plt.subplots(figsize=(4.6,3.3), layout='constrained')[1]
    n = len(net.nodes)
    at = {f'X{i+1}':(i*.5, n-i) for i in range(n)} | {'B':(n*.5, 0)} | {f'D{i+1}':(n*1.05-i*.5+1.2, n-i) for i in range(n)}
    def line(a, b, gate, bow=0.):
        (x0,y0),(x1,y1) = at[a],at[b]
        end = x1+.14 if bow else x1-.14
        style = dict(arrowstyle='-', color=palette[0] if gate else '#777777' if bow else '#BBBBBB', lw=1.1, shrinkA=0, shrinkB=0)
        ax.annotate('', (end,y1), (x0+.14,y0), arrowprops=style|dict(connectionstyle=f'arc3,rad={bow}'))
    for i,node in enumerate(net.nodes):
        for j in range(len(node.enc)): line(f'X{j+1}', f'D{i+1}', node.gates is not None)
        for j in range(len(node.dec)): line(f'D{i+j+2}', f'D{i+1}', False, .3+.1*j)
        line('B', f'D{i+1}', False)
    down = [*(f'X{i+1}' for i in range(n)), 'B']
    for a,b in zip(down, down[1:]): ax.annotate('', at[b], at[a], arrowprops=dict(arrowstyle='->', color='black', lw=1.2, shrinkA=11, shrinkB=11))
    paint = dict(X=palette[1], D=palette[2], B=palette[3])
    for k,(x,y) in at.items(): ax.text(x, y, k, ha='center', va='center', fontsize=8, bbox=dict(boxstyle='circle', fc=paint[k[0]], lw=0))
    for i in range(n+1): ax.text(-.75, n-i, f'1/{2**(i+1)}', fontsize=7, va='center', color='#666666')
    ax.set(xlim=(-.9, n*1.05+1.7), ylim=(-.5, n+.5))
    ax.axis('off')
    return ax

# %% ../nbs/papers/50_unet_sharp.ipynb #168eea2c
def open_norms(module): # nn.Module
    "Scale 1 and shift 0 for all batch norms"
    for m in module.modules():
        if isinstance(m, norm_types): m.reset_parameters()

def freeze_norms(
    module, # nn.Module
):
    "No gradient for the batch norms of a module"
    for p in norm_bias_params(module, with_bias=False): p.requires_grad_(False)
    return module

# %% ../nbs/papers/50_unet_sharp.ipynb #f175586f
def sharp_net(
    recipe, # `SharpRecipe`
    classes:int, # with background
): # nn.Module with an `encoder`; `started` says 'imagenet' (the weights of its name) or 'random'
    "The network of a recipe"
    r,kind = recipe,sharp_nets[recipe.net]
    def make(weights):
        if isinstance(kind, dict): return UnetSharp(classes, r.encoder, r.width, **kind, image_pool=r.image_pool, pretrained=weights)
        return kind(f'tu-{r.encoder}', encoder_weights=True if weights else None, classes=classes)
    try: net,started = with_weights(make, r.pretrained, r.encoder)
    except DataError: raise
    except Exception as e: raise DataError(f'{r.encoder!r} cannot be the encoder of a {r.net} ({type(e).__name__}: {e})', fix='Take a name of timm.list_models(), such as resnet18') from None
    if started=='random': open_norms(net.encoder)
    freeze_norms(net.encoder)
    net.started = started
    return net

def trained_parameters(net): return sum(p.numel() for p in trainable_params(net))

# %% ../nbs/papers/50_unet_sharp.ipynb #4c71c105
def tversky_index(
    p, # float (B,C,H,W), probabilities
    t, # float (B,C,H,W), 1 where the class is, else 0
    beta:float=.7, # weight of false positives
    over=(0,2,3), # axes that are summed: for each class over batch and pixels
): # float (C,), or () if all axes are summed; NaN for a class that is neither there nor said to be
    "Tversky index (Eq. 2)"
    hit,false,miss = ((a*b).sum(over) for a,b in ((p, t), (p, 1-t), (1-p, t)))
    return hit/(hit+beta*false+(1-beta)*miss)

# %% ../nbs/papers/50_unet_sharp.ipynb #f27b4c8c
class FocalTversky:
    "The loss of Eq. 3, or its pooled form"
    def __init__(self,
        beta:float=.7, # weight of false positives
        focal:float=4/3, # exponent
        pooled:bool=False, # one index for all classes together?
    ):
        self.beta,self.focal,self.pooled = beta,focal,pooled

    def __call__(self,
        scores, # float (B,C,H,W)
        y, # int64 (B,H,W)
    ): # float ()
        p = scores.float().softmax(1)
        t = F.one_hot(y, p.shape[1]).movedim(-1, 1).to(p.dtype)
        if self.pooled: return (1-tversky_index(p, t, self.beta, (0,1,2,3))).clamp(min=0)**self.focal
        there = t.any(0).flatten(1).any(1)
        return ((1-tversky_index(p[:,there], t[:,there], self.beta)).clamp(min=1e-7)**self.focal).sum()

# %% ../nbs/papers/50_unet_sharp.ipynb #955a5bec
def sharp_loss(
    recipe, # `SharpRecipe`
): # function of scores (B,C,H,W) and int64 (B,H,W)
    "The loss of a recipe"
    r = recipe
    if r.loss!='cross-entropy + Dice': return FocalTversky(r.beta, r.focal, r.loss=='pooled')
    dice = smp.losses.DiceLoss('multiclass')
    def cross_entropy_and_dice(scores, y): return F.cross_entropy(scores.float(), y)+dice(scores.float(), y)
    return cross_entropy_and_dice

# %% ../nbs/papers/50_unet_sharp.ipynb #610df414
def adabound(
    recipe, # `SharpRecipe`
): # function that fastai's `Learner` takes as `opt_func`
    "AdaBound with the numbers of Table I"
    r = recipe
    return partial(OptimWrapper, opt=AdaBound, final_lr=r.final_lr, gamma=r.bound, betas=(.9,.999), eps=1e-8, weight_decay=0.)

def adabound_bounds(
    step, # number of the step, from 1; or an array
    final_lr:float=.1, # where they end
    gamma:float=1e-3, # how soon
): # lower and upper bound of what the gradient is multiplied with
    "Bounds of AdaBound"
    return final_lr*(1-1/(gamma*step+1)),final_lr*(1+1/(gamma*step))

# %% ../nbs/papers/50_unet_sharp.ipynb #6d43db79
class FreezeEncoder(Callback):
    "The encoder is frozen for some epochs, its batch norms for good"
    def __init__(self,
        epochs:int=5, # frozen so long
    ):
        self.epochs = epochs

    def before_epoch(self):
        self.model.encoder.requires_grad_(self.epoch>=self.epochs)
        freeze_norms(self.model.encoder)

# %% ../nbs/papers/50_unet_sharp.ipynb #9cbcf8b6
def _squares(items, side): return sum(max(1, math.prod(o.image.shape[:2])//side**2) for o in items)

def unet_sharp_dls(
    samples, # list of `Sample` with classes, of the splits 'train' and 'val'
    recipe, # `SharpRecipe`
    folder=None, # where normalised images are kept; in memory if none
    device=None, # the best there is if none
)->DataLoaders: # of squares uint8 (B,3,W,W) and int64 (B,W,W)
    "Squares to learn from and squares to watch"
    samples = list(samples)
    r,parts = recipe,by_split(samples)
    for k in ('train','val'):
        if not parts.get(k): raise DataError(f'there is no sample of the split {k!r}', fix='Samples to learn from have the split train, those to watch val: see sharp_samples')
    if len({s.class_names for s in samples})>1: raise DataError('the samples differ in their classes', fix='Take samples of one data set')
    train,val = (prepare(parts[k], r, folder) for k in ('train','val'))
    n = r.batches*r.batch_size or -(-_squares(train, r.window)//r.batch_size)*r.batch_size
    def ds(o, side, n, **kw): return MaskWindows([p.image for p in o], [p.classes for p in o], side, n, names=[p.name for p in o], **kw)
    sets = ds(train, r.window, n, turn=False, focus=r.balance),ds(val, r.crop, _squares(val, r.crop), turn=False, seed=r.seed)
    dls = DataLoaders(*[DataLoader(o, r.batch_size, shuffle=not i, num_workers=0) for i,o in enumerate(sets)], device=device or get_device())
    dls.names = ('background',*parts['train'][0].class_names)
    return dls

# %% ../nbs/papers/50_unet_sharp.ipynb #21378af6
class ForegroundDice(Metric):
    "Mean Dice of the classes of nuclei, pooled over pixels"
    def reset(self): self.table = 0
    def accumulate(self, learn):
        n = learn.pred.shape[1]
        pair = learn.y.flatten()*n+learn.pred.argmax(1).flatten()
        self.table = self.table+torch.bincount(pair, minlength=n*n).cpu().numpy().reshape(n, n)

    @property
    def value(self): return averaged(class_scores(self.table))['dice']
    @property
    def name(self): return 'dice'

# %% ../nbs/papers/50_unet_sharp.ipynb #3d65f71d
def training_only(recipe): return replace(recipe, overlap=.5, min_size=0, trees=1, mpp=.25)

def unet_sharp_learner(
    dls, # of `unet_sharp_dls`
    recipe, # `SharpRecipe`
    folder=None, # for checkpoints and the best weights
)->Learner: # its `model` is on the device of the loaders
    "U-Net#, or one of its peers, with loss, optimiser and callbacks of the paper"
    r = recipe
    set_seed(r.seed)
    cbs = [DeviceAugment(SharpViews(r), targets=True), Monitor(), StopOnNaN(), FreezeEncoder(r.freeze_epochs), *speedups(dls.device)]
    if r.accumulate>1: cbs.append(GradientAccumulation(r.accumulate*r.batch_size))
    if folder: cbs += [SaveBest(Path(folder)/'best.safetensors', recipe=r), EarlyStoppingCallback(patience=r.patience), Checkpoint(folder, recipe=training_only(r))]
    learn = Learner(dls, sharp_net(r, len(dls.names)), sharp_loss(r), opt_func=adabound(r), lr=r.lr, splitter=params, metrics=ForegroundDice(), cbs=cbs)
    learn.recipe,learn.names = r,dls.names
    return learn

# %% ../nbs/papers/50_unet_sharp.ipynb #04c88a7f
def sharp_train(
    learn, # of `unet_sharp_learner`
)->Learner:
    "All epochs of the recipe"
    r = learn.recipe
    with quiet(learn, r.net): learn.fit_flat_cos(r.epochs, r.lr, pct_start=1-r.anneal) if r.anneal else learn.fit(r.epochs, r.lr)
    return learn

# %% ../nbs/papers/50_unet_sharp.ipynb #f9d1ed8d
Trained = namedtuple('Trained', 'net recipe names')

def as_trained(
    model, # a Learner of `unet_sharp_learner`, or a network
    recipe=None, # `SharpRecipe`; that of the Learner if none
    names=None, # of all classes, 'background' first; those of the Learner if none
)->Trained:
    "Network, recipe and names of a model"
    recipe,names = recipe or getattr(model, 'recipe', None),names or getattr(model, 'names', None)
    if recipe is None: raise DataError('a network alone does not say what it was trained with', fix='Pass its recipe')
    return Trained(getattr(model, 'model', model), recipe, names and tuple(names))

def sharp_map(
    model, # as for `as_trained`
    image, # uint8 (H,W,3)
    recipe=None, # as for `as_trained`
    stain=None, # fitted `Macenko` of the slide; fitted to the image itself if none
)->np.ndarray: # float32 (C,H,W), sums to 1
    "Probability of each class for each pixel"
    net,r,_ = as_trained(model, recipe)
    shape = check_image(image).shape[:2]
    if r.macenko: image = stain.transform(image) if stain else Macenko().fit_transform(image)
    prob = sliding_map(lambda x: net.eval()(x).softmax(1), shrink_image(image, r.shrink), r.crop, r.overlap, device=next(net.parameters()).device)
    if r.shrink==1: return prob
    return F.interpolate(torch.from_numpy(prob)[None], scale_factor=r.shrink, mode='bilinear')[0,:,:shape[0],:shape[1]].numpy()

# %% ../nbs/papers/50_unet_sharp.ipynb #f7bd8f13
def class_instances(
    classes, # whole numbers (H,W), 0 is background
    min_size:int=0, # smaller pieces are dropped, px
)->np.ndarray: # int32 (H,W), 0 is background
    "Connected pieces of each class"
    res = label(classes, background=0, connectivity=1)
    small = np.bincount(res.ravel())<min_size
    small[0] = False
    order = np.cumsum(~small)-1
    return np.where(small, 0, order)[res].astype(np.int32)

# %% ../nbs/papers/50_unet_sharp.ipynb #6c08b9dd
ClassSegmentation = namedtuple('ClassSegmentation', 'prob classes instances') # float32 (C,H,W); uint8 (H,W); int32 (H,W), 0 is background

def slide_stain(
    slide, # `Slide`, or uint8 (H,W,3)
): # fitted `Macenko`; none where there are not two dyes
    "The dyes of a slide"
    try: return Macenko().fit(slide.thumbnail(1500) if isinstance(slide, Slide) else slide)
    except DataError: return None

def unet_sharp_predict(
    model, # as for `as_trained`
    image, # uint8 (H,W,3); or a `Slide`, or the path of an image or a slide
    recipe=None, # as for `as_trained`
    names=None, # as for `as_trained`
    **kw, # for a slide, handed to `predict_slide`: out, mask, progress, shrink
): # `ClassSegmentation` of an image, `SlideMap` of a slide
    "The classes of an image or of a slide"
    net,r,names = as_trained(model, recipe, names)
    if not isinstance(image, (Slide,str,Path)):
        prob = sharp_map(net, image, r)
        classes = prob.argmax(0).astype(np.uint8)
        return ClassSegmentation(prob, classes, class_instances(classes, r.min_size))
    slide = image if isinstance(image, Slide) else open_picture(image)
    if not isinstance(slide, Slide): return unet_sharp_predict(net, slide, r, names)
    stain = slide_stain(slide) if r.macenko else None
    def ask(x):
        if stain: x = as_batch(stain.transform((255*x).round().byte().permute(0,2,3,1).cpu().numpy()), x.device)
        return net.eval()(x).softmax(1)
    stride = max(8, int(r.crop*(1-r.overlap))//8*8)
    kw = dict(stride=stride, shrink=4, names=names, tag=f'{model_tag(net)}, macenko {r.macenko}', device=next(net.parameters()).device)|kw
    return predict_slide(slide, ask, r.crop, r.mpp*r.shrink, **kw)

# %% ../nbs/papers/50_unet_sharp.ipynb #3b1d037b
def unet_sharp_nuclei(
    model, # as for `as_trained`
    source, # uint8 (H,W,3); or a `Slide`, or the path of an image or a slide
    recipe=None, # as for `as_trained`
    names=None, # as for `as_trained`
    **kw, # handed to `segment_image`: core, halo, mask, corners, progress
)->Nuclei:
    "The nuclei of an image or of a slide, with their classes"
    net,r,names = as_trained(model, recipe, names)
    if isinstance(source, (str,Path)): source = open_picture(source)
    stain = slide_stain(source) if r.macenko else None
    plain = r if stain else replace(r, macenko=False)
    def predict(image):
        classes = sharp_map(net, image, plain, stain).argmax(0)
        return class_instances(classes, r.min_size),classes
    return segment_image(source, predict, r.mpp, names=names, **kw)

# %% ../nbs/papers/50_unet_sharp.ipynb #11222b74
def class_rows(
    classes, # uint8 (H,W), predicted
    instances, # int32 (H,W), predicted
    sample, # `Sample` with classes
)->list: # of dicts, one a class
    "Scores of each class of an image"
    truth,n = class_map(sample),len(sample.class_names)
    rows = class_scores(confusion(classes, truth, n+1)).to_dict('records')
    if sample.load_instances is None: quality = [np.nan]*n
    else: quality = class_pq(by_class(sample.instances, truth, n), by_class(instances, classes, n))
    return [dict(image=sample.name, **{'class':c}, tissue=sample.organ, **row, pq=q) for c,row,q in zip(('background',*sample.class_names), rows, (np.nan,*quality))]

def unet_sharp_evaluate(
    model, # as for `as_trained`; or a function from uint8 (H,W,3) to whole numbers (H,W)
    samples, # list of `Sample` with classes
    recipe=None, # as for `as_trained`
)->pd.DataFrame: # a row per image and class: tissue, tp, fp, fn (px), dice, iou, pq
    "All scores on samples"
    if not len(samples): raise DataError('there is nothing to measure on')
    rows,net = [],isinstance(model, nn.Module) or hasattr(model, 'model')
    for s in samples:
        if net: _,classes,instances = unet_sharp_predict(model, s.image, recipe)
        else:
            classes = np.asarray(model(s.image))
            instances = class_instances(classes, recipe.min_size if recipe else 0)
        rows += class_rows(classes, instances, s)
    return pd.DataFrame(rows).set_index(['image','class'])

# %% ../nbs/papers/50_unet_sharp.ipynb #fca90644
def class_summary(
    table, # of `unet_sharp_evaluate`
)->pd.DataFrame: # a row per class, then micro, macro, and macro without dead where there is such a class: dice, iou, pq
    "Scores of each class, pooled over images, and their averages"
    order = list(dict.fromkeys(table.index.get_level_values('class')))
    sums = table.groupby(level='class')[['tp','fp','fn']].sum().loc[order]
    rates_of = sums.assign(dice=2*sums.tp/(2*sums.tp+sums.fp+sums.fn), iou=sums.tp/(sums.tp+sums.fp+sums.fn))
    res = rates_of[['dice','iou']].assign(pq=table.groupby(level='class').pq.mean().loc[order])
    kinds = {'micro':('micro',None), 'macro':('macro',None)}
    if 'dead' in order and len(order)>2: kinds['macro without dead'] = 'macro',[i for i,o in enumerate(order) if i and o!='dead']
    for k,(how,some) in kinds.items():
        res.loc[k] = averaged(rates_of, how, some)
        if how=='macro': res.loc[k,'pq'] = res.pq.iloc[some or range(1, len(order))].mean()
    return res

# %% ../nbs/papers/50_unet_sharp.ipynb #7be240ca
def colour_features(
    image, # uint8 (H,W,3)
    sigmas=(1,3,8), # of the Gaussians, px
)->np.ndarray: # float32 (H,W,9)
    "Optical densities, blurred more and more"
    od = rgb2od(image)
    return np.concatenate([ndi.gaussian_filter(od, (s,s,0)) for s in sigmas], -1)

def colour_forest(
    samples, # list of `Sample` with classes, to learn from
    recipe, # `SharpRecipe`
    pixels:int=4000, # drawn from each image
): # function from uint8 (H,W,3) to uint8 (H,W)
    "Classical baseline: a random forest of colours"
    r,rng,x,y = recipe,np.random.default_rng(recipe.seed),[],[]
    if not len(samples): raise DataError('there is nothing to learn from', fix="Samples to learn from need the split 'train'")
    for o in prepare(samples, r):
        f,m = colour_features(o.image).reshape(-1, 9),o.classes.ravel()
        at = rng.integers(len(m), size=pixels)
        x.append(f[at])
        y.append(m[at])
    forest = RandomForestClassifier(r.trees, min_samples_leaf=10, max_features=3, random_state=r.seed)
    forest.fit(np.concatenate(x), np.concatenate(y))
    def predict(image):
        small = shrink_image(Macenko().fit_transform(image) if r.macenko else image, r.shrink)
        found = forest.predict(colour_features(small).reshape(-1, 9)).reshape(small.shape[:2])
        return grow_map(found.astype(np.uint8), image.shape[:2], r.shrink)
    return predict

# %% ../nbs/papers/50_unet_sharp.ipynb #44c1aa38
def image_dice(
    table, # of `unet_sharp_evaluate`
)->pd.Series: # by image
    "Mean Dice over the classes of nuclei that an image has"
    return table[table.tp+table.fn>0].drop('background', level='class').groupby(level='image').dice.mean()

# %% ../nbs/papers/50_unet_sharp.ipynb #5981b3ed
def sharp_samples(
    dataset:str='consep', # 'consep' or 'pannuke'
    path=None, # its folder; `data_folder` if none
    seed:int=42, # of the drawing of CoNSeP's 20 and 7
)->L: # of `Sample` with the splits 'train', 'val' and perhaps 'test'
    "A data set as the protocol needs it"
    if dataset=='pannuke':
        folds = {'fold 1':'train', 'fold 2':'val', 'fold 3':'test'}
        found = L(replace(s, split=folds.get(s.split)) for s in pannuke(path))
        if any(s.split is None for s in found): raise DataError('these patches are of no fold', found[0].path, 'The protocol needs the folders Fold 1, Fold 2 and Fold 3')
        return found
    if dataset!='consep': raise DataError(f'there is no protocol for {dataset!r}', fix="Choose 'consep' or 'pannuke', or give your samples the splits train and val")
    found = consep(path)
    learnt,watched = by_patient([s for s in found if s.split!='test'], (20/27,7/27), seed)
    return L(replace(s, split=k) for k,o in (('train',learnt), ('val',watched)) for s in o) + L(s for s in found if s.split=='test')

# %% ../nbs/papers/50_unet_sharp.ipynb #f57ad828
sharp_changes = {'U-Net#':{}, **{k:dict(net=k) for k in sharp_nets if k!='U-Net#'}, 'U-Net#, misses weigh 0.7':dict(beta=.3),
    'U-Net#, without Macenko':dict(macenko=False), 'U-Net#, image pooling':dict(image_pool=True), 'U-Net#, with balance':dict(balance=.5), 'U-Net#, without balance':dict(balance=0.)}
for k,loss in (('pooled loss','pooled'), ('cross-entropy + Dice','cross-entropy + Dice')):
    sharp_changes |= {f'U-Net#, {k}':dict(loss=loss), f'U-Net#, {k}, without balance':dict(loss=loss, balance=0.)}
sharp_systems = ['colour forest', *sharp_changes]

def sharp_recipe(
    system:str, # one of `sharp_systems`
    recipe, # `SharpRecipe`
)->SharpRecipe:
    "The recipe of a row"
    if system not in sharp_systems: raise DataError(f'there is no system {system!r}', fix=f'Choose one of {", ".join(sharp_systems)}')
    return replace(recipe, **sharp_changes.get(system, {}))

def sharp_fit(
    samples, # list of `Sample`, of the splits 'train' and 'val'
    recipe, # `SharpRecipe`
    folder, # for checkpoints, best weights and normalised images
)->Learner: # trained, with the weights of the best epoch
    "Train a system"
    folder,some = out_folder(folder),[s for s in samples if s.split in ('train','val')]
    place = folder/hashlib.sha256(json.dumps(training_only(recipe).to_dict()).encode()).hexdigest()[:12]
    dls = unet_sharp_dls(some, recipe, folder/'macenko')
    check_samples(some, place)
    return sharp_train(unet_sharp_learner(dls, recipe, place))

# %% ../nbs/papers/50_unet_sharp.ipynb #2dc63655
def sharp_row(
    system:str, # one of `sharp_systems`
    samples, # list of `Sample` with classes
    recipe, # `SharpRecipe`
    dataset:str='CoNSeP', # name, for the ledger
    folder=None, # as for `sharp_fit`; one that is thrown away if none
    scale=None, # of the run, for the ledger
    results=None, # folder of the ledger
)->dict: # split: DataFrame of `unet_sharp_evaluate`
    "Train, measure and write down one system"
    start,done,r = time.time(),{},sharp_recipe(system, recipe)
    with tempfile.TemporaryDirectory() as tmp:
        forest = system=='colour forest'
        model = colour_forest([s for s in samples if s.split=='train'], r) if forest else sharp_fit(samples, r, folder or tmp)
        for split in dict.fromkeys(s.split for s in samples if s.split!='train'):
            done[split] = unet_sharp_evaluate(model, [s for s in samples if s.split==split], r)
            about = dict(scale=scale, seed=r.seed, device=get_device(), seconds=time.time()-start, folder=results, recipe=r.to_dict())
            if not forest: about |= dict(started=model.model.started, epochs=len(model.recorder.values))
            save_sharp(done[split], system, dataset, split, **about)
    return done

def save_sharp(
    table, # of `unet_sharp_evaluate`
    system:str, # one of `sharp_systems`
    dataset:str, # name
    split:str, # part of it
    **more, # handed to `save_result`
):
    "Write the scores of a row into the ledger: dice_macro, iou_micro, dice_epithelial, pq_macro ..."
    if not table.index.is_unique: raise DataError(f'two images in the scores of {system!r} have the same name', fix='Give each sample a name of its own')
    each = {k:class_summary(t) for k,t in table.groupby(level='image', sort=False)}
    counts = {k:t[['tp','fp','fn']].astype(int).to_numpy().tolist() for k,t in table.groupby(level='image', sort=False)}
    rows,last = class_summary(table).stack().dropna(),('macro','dice') # the last one says that all are there
    for (k,metric),v in [*rows.drop(last).items(), (last, rows[last])]:
        per = {i:round(float(o.loc[k,metric]), 4) for i,o in each.items() if k in o.index and o.loc[k,metric]==o.loc[k,metric]}
        extra = dict(counts=counts, classes=list(dict.fromkeys(table.index.get_level_values('class')))) if (k,metric)==last else {}
        save_result('unet_sharp', system, dataset, split, f'{metric}_{k}'.replace(' ', '_'), v, per, **extra, **more)

# %% ../nbs/papers/50_unet_sharp.ipynb #130c3aa6
def sharp_grid(
    systems, # list, of `sharp_systems`
    samples, # list of `Sample` with classes
    recipe, # `SharpRecipe`
    dataset:str='CoNSeP', # name, for the ledger
    folder=None, # as for `sharp_fit`
    scale=None, # of the run, for the ledger
    results=None, # folder of the ledger
)->list: # of the systems that were run
    "All systems that are not in the ledger yet"
    run,scale,splits = [],get_scale(scale),{s.split for s in samples if s.split!='train'}
    if not splits: raise DataError('there is nothing to measure on', fix='Samples of the split val or test are needed')
    for system,r in [(o, sharp_recipe(o, recipe)) for o in systems]:
        if is_done('unet_sharp', system, [(dataset,o) for o in splits], scale, r.seed, 'dice_macro', results, r): continue
        print(f'{system}, seed {r.seed}')
        sharp_row(system, samples, recipe, dataset, folder, scale, results)
        run.append(system)
    return run

def pooled_dice(
    counts, # (n,C,3): tp, fp, fn of each class of n images; class 0 is background
): # float in [0,1]
    "Macro Dice over pooled pixels"
    tp,fp,fn = np.moveaxis(np.asarray(counts, float).sum(0)[1:], -1, 0)
    known = tp+fp+fn>0
    return float((2*tp[known]/(2*tp+fp+fn)[known]).mean()) if known.any() else 1.

def sharp_board(
    split:str='val', # part of the data
    dataset:str='CoNSeP', # name of the data set
    scale:str='small', # scale of the runs
    folder=None, # of the ledger
)->pd.DataFrame: # a row per system, the best on top: macro Dice with its interval, micro, single classes, PQ, seeds
    "All systems side by side"
    df = ledger.results('unet_sharp', folder)
    df = df[(df.dataset==dataset)&(df.split==split)&(df.scale==scale)]
    if not len(df): raise DataError(f'nothing was measured on {dataset} {split} at {scale}', fix='Run the slow cells: HISTOLAB_FLAGS=slow histolab-nb run unet_sharp --data DIR')
    rows = []
    for system,runs in df.groupby('system'):
        own,means = runs[runs.metric=='dice_macro'],runs.groupby('metric').value.mean()
        if not len(own): continue # a row that was killed half-way
        known = own.counts.tolist()
        per = np.array([np.mean([o[k] for o in known], 0) for k in known[0]])
        ci = interval(per, pooled_dice) if len(per)>1 else Interval(means.dice_macro, np.nan, np.nan)
        single = {k:means.get(f'dice_{k}'.replace(' ', '_')) for k in own.classes.iloc[0][1:]}
        rows.append(dict(system=system, macro=means.dice_macro, interval=f'{ci.low:.3f} to {ci.high:.3f}', micro=means.dice_micro, **single, pq=means.get('pq_macro'), seeds=own.seed.nunique()))
    return pd.DataFrame(rows).set_index('system').sort_values('macro', ascending=False).round(3)

# %% ../nbs/papers/50_unet_sharp.ipynb #a01c626d
__all__ = [o for o in globals() if not o.startswith('_')] # all that the notebook uses, for `from histolab_nb.unet_sharp import *`
