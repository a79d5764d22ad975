"""A network that has never seen an outlined nucleus is shown a piece of tissue and an enlarged part of it. It has to say which of the two is enlarged and which shows more. Does it learn nuclei that way?

Outlining nuclei is slow work, and there are millions of images without outlines. Xie et al. make the images themselves set the questions. Cut a patch of tissue (the *anchor*), a second one beside it (the *positive*), and a part of the second, enlarged to the same side (the *negative*).
Two things are then known without anybody's help: nuclei in the negative look *larger* than in the other two, and there are *fewer* of them. A network that answers both questions, so the paper says, has learnt what a nucleus is; its encoder is then given to a segmentation network that is trained on few outlines.
This module offers the steps one by one:

1. the questions: `Triplets`, and the other pretexts of the paper's Table 2 (`Turns`, `Jigsaw`, `Colours`);
2. the pretext training (`PretextNet`, `InstanceLoss`, `pretext_learner`);
3. the target: a three-class ResUNet (`ResUNet`, `issl_dls`, `issl_learner`), which takes over the encoder;
4. sliding-window prediction and instances (`issl_predict`), scores (`issl_evaluate`);
5. the paper's protocol: any row of its tables with `issl_row`, all rows with `issl_grid`.

### The recipe

Every number of the method is a field of `InstanceRecipe`, with its place in the paper. A star marks what the paper leaves open; there is no code of the authors to look it up in.

`small_image` brings an image to the resolution that a recipe works at and `small_instances` the truth with it: `shrink=2` halves the resolution. With `reinhard` the colours of each image are first brought to common ones; an image of nearly one colour is left as it is.

`triplet_sizes` scales the paper's numbers to any window, and `triplet_boxes` draws the three squares of each triplet. The negative lies inside of the positive, so it cannot show more nuclei. It may show as many, though: where both are empty, for one. The paper's "always lower" is a little too strong.

`cut_patches` cuts and resizes them, on whatever device the windows are. A patch that gets larger is interpolated, one that gets smaller is smoothed first. With `limit`, a patch is shrunk to that many pixels and enlarged again: it loses exactly the detail that a negative of this side never had.

### Windows

The squares come from `Windows` of `training`: anywhere in images that nobody has outlined, and turned any way. An image that is smaller than the recipe's window is an error; a smaller `window` helps (the patches follow it), or a smaller `crop` in the target task.

A *pretext* sets the question: it turns a batch of windows into what the network sees and the answer that is wanted. It does so on the device, a batch at a time. What all share stands in `PretextTask`: patches get the stain jitter each for itself, so that colour gives nothing away.

`permutation_set` chooses orders that differ in as many places as possible, as Noroozi and Favaro do: each next one is the one farthest from those chosen. Tiles are cut a little smaller than their cell, at a random place in it, so that lines across their edges give nothing away.

`Jigsaw` gives the network nine tiles a window, `Colours` shows green three times, since the encoder has three inputs.

### The shared encoder

`make_encoder` builds it: any convolutional network of timm with five stages, such as a ResNet. ImageNet weights are asked for where the recipe wants them; where they cannot be had it says so, and `started` tells how it began. An unknown name is an error.

### Heads

The last features are averaged over the patch and become an embedding $z$ of 128 numbers; $f$, "a fully convolution layer", makes one number of it, which on a vector is a plain linear layer. Whether $z$ has length 1 the paper does not say. FaceNet, which it cites for the triplet loss, does it, and it is what gives a margin
of 1 a meaning: squared distances are then between 0 and 4. Without it the network can meet any margin by making all numbers larger.

The other pretexts need a class (`ClassHead`; for the jigsaw the embeddings of nine tiles are put side by side) or a picture (`ColourHead`: red and blue at a quarter of the resolution, and how their values are distributed).

### The target network

The authors take the one-step network of Cui et al. (2019): a U-Net that sorts pixels into background, nucleus body and nucleus boundary. With a ResNet as its encoder it is called ResUNet. `ResUNet` builds it from our encoder and the U-Net decoder of segmentation-models-pytorch; `take_over` copies the weights of an encoder that has been through a pretext. Weights of another encoder do not fit, and the error says so.

Both are at home in PyTorch under other names; we take the mean over a batch where the paper writes a sum, so that the rate need not follow the batch size.

`InstanceLoss` is their weighted sum (Eq. 3).

`right_triplet` and `right_order` are what we watch: the share of triplets in which the positive is nearer than the negative, and in which the positive has the higher score. Chance is a half.

`pretext_net` puts a pretext together by its name: the paper's own (`SSL`), each of its losses alone (`ST`, `CR`), ours (`SSL matched`, with `blur_match`), and the three it is compared with. `scratch` and `ImageNet` have none.

`InstanceTrace` writes down what happens to the triplets batch by batch: both losses and both shares.

`pretext_learner` makes the fastai `Learner`. The pretext is a transform of the batch on the device, so the loader only cuts windows; validation windows are drawn from other images. Trained for the same number of batches, every pretext sends as many patches through the encoder as the triplets do. RotNet gets its windows as they lie, the others turned at random.

`shortcut_test` asks a trained network three kinds of question, for every side that a negative can have. *usual*: as in training. *all blurred*: anchor and positive have lost as much detail as the negative, so only size and number tell them apart. *blur alone*: the "negative" is the positive itself, of the same size and with the same nuclei, only blurred. Here no answer is right; who calls it enlarged, or emptier, nearly always has gone by the blur.

`count_table` cuts patches of the anchor's side from annotated samples and gives score and true count of each.

`density_map` is that map: what each place adds to the count score. Its mean *is* the score, which makes it more than a picture of activations.

`boundary_map` turns an instance map into the three classes: the outer pixels of each nucleus are its boundary, also where two nuclei touch.

`LabelledCrops` draws crops and their classes as `Windows` does, and `issl_dls` makes the loaders.

`issl_learner` trains the ResUNet with a cross-entropy, in which the thin boundary can have more weight. Given an encoder, the network takes it over and all of it is trained on; with `freeze` the encoder's convolutions stay as they are, which shows what its features are worth.

`issl_map` goes over an image of any size in overlapping windows and averages up to eight views: four turns, each mirrored or not (`turned` and `turned_back` of `inference`).

### From pixels to instances

How body, boundary and background become nuclei the paper does not say. `nuclei_from` offers two ways. *bodies*: each connected piece of body is a nucleus and grows back into its own boundary (`boundary_instances`); one missed pixel of boundary merges two nuclei. *middles*: everything that is not background is cut by a watershed from the maxima
of *distance to the background times probability of body*, smoothed; here the boundary only has to lower the map between two nuclei, it need not be closed.

`issl_predict` does both, the map and its instances. With `reinhard` the colours are measured on the image it is given; for a slide that is read in windows this means on each window.

`issl_evaluate` scores a model, or any function from an image to an instance map, on annotated samples: AJI, Dice, ensemble Dice (`dice2`) and PQ, a row per image.

`fraction_of` draws whole images, and where a part of an image remains, the central square of the next one with that share of its area. A part too small for a crop is left out, and if nothing is left that is an error.

A `Row` is one number of the paper: a system, a fraction, a seed, and for CPM a fold; `frozen` is ours. `table_rows` lists those of Tables 1 to 4.

Each row has a recipe of its own, and each fold of Table 4 its own name in the ledger.

`issl_pretext` trains a pretext, or finds it trained: with a `folder`, what is done is kept, and a run that was killed goes on. A network of another recipe is not taken.

`issl_fit` does all of one row: pretext on all training images, target training on the fraction. Nothing is chosen by looking at any result: the last step of the training is taken, and the post-processing stands in the recipe. Networks that were kept are taken up again only for the images they were trained on (`check_samples`).

`issl_row` also measures it on every part of the data it was not trained on, and writes AJI, Dice, Dice_2 and PQ with the values of all images into the ledger.

`issl_grid` runs many rows, one after the other. A row that is in the ledger, with the same recipe, is not run again, so a grid that was killed goes on with what is missing. For CPM `fold_mean` adds the average of Table 4 when all five folds are there.

The grid itself:

`issl_samples` puts the split of the paper and those later images together.

The number that can be compared with the paper's is not an AJI, since protocol and images differ, but the *gain over scratch* under one protocol. `gains` puts ours beside the paper's.

Docs: https://histolab-nb.github.io/histolab_nb/papers/instance_ssl.html.md"""

# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/papers/30_instance_ssl.ipynb.

# %% auto #0
__all__ = ['recipe_rules', 'tiny_scale', 'small_scale', 'system_changes', 'Pretext', 'Segmentation', 'Row', 'label_shares',
           'InstanceRecipe', 'small_image', 'small_instances', 'triplet_sizes', 'triplet_boxes', 'resized',
           'cut_patches', 'PretextTask', 'Triplets', 'permutation_set', 'Turns', 'Jigsaw', 'Colours', 'Encoder',
           'make_encoder', 'TripletHead', 'ClassHead', 'ColourHead', 'PretextNet', 'ResUNet', 'squared_distance',
           'scale_triplet_loss', 'count_ranking_loss', 'InstanceLoss', 'right_triplet', 'right_order', 'colour_counts',
           'colour_loss', 'colour_error', 'system_recipe', 'pretext_net', 'InstanceTrace', 'pretext_learner',
           'shortcut_test', 'count_table', 'density_map', 'boundary_map', 'LabelledCrops', 'issl_dls', 'issl_learner',
           'issl_map', 'nuclei_from', 'issl_predict', 'issl_evaluate', 'fraction_of', 'row_name', 'row_recipe',
           'row_data', 'table_rows', 'issl_pretext', 'issl_fit', 'issl_row', 'fold_mean', 'issl_grid', 'issl_samples',
           'gains']

# %% ../nbs/papers/30_instance_ssl.ipynb #b229e1e7
import math, time, numpy as np, pandas as pd, segmentation_models_pytorch as smp, timm, torch
from collections import namedtuple
from dataclasses import dataclass, replace
from fastai.basics import *
from fastai.callback.schedule import *
from fastai.metrics import DiceMulti, accuracy as class_accuracy
from scipy import ndimage as ndi
from skimage.segmentation import relabel_sequential, watershed
from skimage.transform import downscale_local_mean
from torchvision.transforms.v2 import Normalize as NormaliseChannels
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

# %% ../nbs/papers/30_instance_ssl.ipynb #bdcb8e47
recipe_rules = dict(split="Choose 'bodies' or 'middles'", views='From 1 to 8', shrink='From 1', overlap='From 0, below 1', decoder='The encoder halves the image five times: five numbers',
    boundary='From 1', pool='At least one side', crop='A multiple of 32, since the encoder halves it five times: 96, 128, 256 ...')

# %% ../nbs/papers/30_instance_ssl.ipynb #db8c4549
@dataclass
class InstanceRecipe(Recipe):
    "Every number of the instance-aware paper; a star marks what it leaves open"
    reinhard:bool = False # Reinhard's stain normalisation of every image first? (ours)
    shrink:int = 1 # all images are made smaller by this factor first (ours, for small machines)
    encoder:str = 'resnet101' # a name of timm's (Sec. 2.2)
    imagenet:bool = False # start the pretext from ImageNet weights, too? *
    window:int = 1000 # side of the square that a triplet is cut from, px (Sec. 2.1)
    anchor:int = 768 # side of anchor and positive, px if the window had 1000 (Sec. 2.1)
    pool:tuple = (512,256,128,64) # sides that a negative can have, likewise (Sec. 2.1)
    size:int = 768 # side at which patches enter the encoder, px (Sec. 2.1)
    blur_match:bool = False # make anchor and positive as blurred as the negative? (ours)
    dim:int = 128 # length of the embedding (Sec. 2.2)
    normalise:bool = True # embeddings of length 1? *
    triplet:float = 1. # weight of the scale-wise triplet loss, Eq. 1; 0 leaves it out (Table 3)
    ranking:float = 1. # weight of the count ranking loss, Eq. 2; 0 leaves it out (Table 3)
    margin_triplet:float = 1. # m1 of Eq. 1
    margin_ranking:float = 1. # m2 of Eq. 2
    stain_jitter:float = 0.2 # haematoxylin and eosin times 1-x .. 1+x, in both trainings *
    stain_shift:float = 0.05 # and -x .. x is added *
    batch_size:int = 16 # triplets a batch *
    batches:int = 50 # of them an epoch *
    epochs:int = 40 # *
    lr:float = 1e-3 # highest rate of one cycle *
    crop:int = 256 # side of the crops of the target task, px *
    boundary:int = 2 # pixels of a nucleus so near to its edge are boundary, px at the recipe's resolution *
    boundary_weight:float = 1. # of the boundary class in the cross-entropy *
    decoder:tuple = (256,128,64,32,16) # channels of the decoder *
    fit_batch_size:int = 16 # crops a batch *
    fit_batches:int = 50 # of them an epoch *
    fit_epochs:int = 60 # *
    fit_lr:float = 1e-3 # highest rate of one cycle *
    freeze:bool = False # train decoder and batch norms only? shows what the encoder is worth as it is (ours)
    wd:float = 0.01 # weight decay of both trainings *
    overlap:float = 0.5 # of the windows in prediction, share of their side *
    views:int = 8 # turns and flips averaged in prediction: 1 to 8 *
    split:str = 'middles' # how pixels become instances: 'bodies', one a connected body, or 'middles', one a maximum of distance times body *
    sigma:float = 1.5 # of the Gaussian before maxima are sought, px of the image *
    peak:int = 5 # radius in which a maximum must be the highest, px of the image *
    min_size:int = 30 # smaller objects are no nuclei, px of the image *
    seed:int = 42 # of everything random

    def __post_init__(self):
        ways = 'bodies','middles'
        wrong = dict(split=self.split not in ways, views=not 1<=self.views<=8, shrink=self.shrink<1, overlap=not 0<=self.overlap<1,
            decoder=len(self.decoder)!=5, boundary=self.boundary<1, pool=not self.pool, crop=self.crop<32 or self.crop%32)
        for k,v in wrong.items():
            if v: raise DataError(f'{k} cannot be {getattr(self, k)!r}', fix=recipe_rules[k])

# %% ../nbs/papers/30_instance_ssl.ipynb #b1a72e50
tiny_scale = dict(shrink=2, encoder='resnet10t', window=125, size=96, batch_size=8, batches=6, epochs=5, lr=2e-3, crop=96, decoder=(64,48,32,16,16),
    fit_batch_size=12, fit_batches=16, fit_epochs=3, fit_lr=4e-3, views=1)
small_scale = dict(reinhard=True, shrink=2, encoder='resnet18', window=250, size=192, batches=12, epochs=10, crop=128, decoder=(128,64,32,16,16),
    fit_batches=15, fit_epochs=20, fit_lr=2e-3, overlap=0.25, views=4)
InstanceRecipe._scales = dict(tiny=tiny_scale, small=small_scale)

# %% ../nbs/papers/30_instance_ssl.ipynb #9287fcdb
def small_image(
    image, # uint8 (H,W,3)
    recipe, # `InstanceRecipe`
)->np.ndarray: # uint8 (h,w,3)
    "The image at the recipe's resolution; an edge that is no whole pixel is cut"
    k,(h,w) = recipe.shrink,check_image(image).shape[:2]
    if recipe.reinhard:
        try: image = Reinhard().fit(image).transform(image)
        except DataError: pass # an empty window has no colours to measure
    return image if k==1 else downscale_local_mean(image[:h//k*k,:w//k*k], (k,k,1)).round().astype(np.uint8)

def small_instances(
    instances, # int32 (H,W)
    recipe, # `InstanceRecipe`
)->np.ndarray: # int32 (h,w)
    "The instance map at the recipe's resolution: the instance in the middle of each pixel"
    k,(h,w) = recipe.shrink,instances.shape
    return instances[:h//k*k,:w//k*k][k//2::k,k//2::k]

# %% ../nbs/papers/30_instance_ssl.ipynb #53d83c66
def triplet_sizes(
    recipe, # `InstanceRecipe`
)->tuple: # side of the anchor, px; sides that a negative can have, px
    "The paper's sides (Sec. 2.1), scaled to the recipe's window"
    scaled = [max(round(o*recipe.window/1000), 1) for o in (recipe.anchor, *recipe.pool)]
    if scaled[0]>recipe.window or max(scaled[1:])>scaled[0]:
        raise DataError(f'sides {scaled[1:]} in {scaled[0]} in a window of {recipe.window} px are not possible', fix='Negatives fit into the anchor, the anchor into the window')
    return scaled[0],scaled[1:]

def triplet_boxes(
    n:int, # triplets
    recipe, # `InstanceRecipe`
)->torch.Tensor: # (n,3,3): anchor, positive, negative; upper edge, left edge and side of each, px of the window
    "Random triplets (Sec. 2.1 and Fig. 1)"
    side,pool = triplet_sizes(recipe)
    place = lambda room: (torch.rand(n, 2)*(room+1)).long()
    small = torch.tensor(pool)[torch.randint(len(pool), (n,))][:,None]
    anchor,positive = (place(recipe.window-side) for _ in range(2))
    same = torch.full((n,1), side)
    return torch.stack([torch.cat(o, 1) for o in ((anchor,same), (positive,same), (positive+place(side-small),small))], 1)

# %% ../nbs/papers/30_instance_ssl.ipynb #ea0eaa63
def resized(
    x, # float (B,C,H,W)
    side:int, # wanted, px
): # float (B,C,side,side)
    "Bilinear, smoothed before it is made smaller"
    return x if x.shape[-1]==side==x.shape[-2] else F.interpolate(x, (side,side), mode='bilinear', antialias=True)

def cut_patches(
    windows, # float (B,3,W,W)
    boxes, # (B,3): upper edge, left edge, side
    size:int, # side of the patches, px
    limit=None, # (B,): side that each is shrunk to on its way; none leaves it out
): # float (B,3,size,size)
    "A patch of each window"
    res = []
    for i,(y,x,s) in enumerate(boxes.tolist()):
        p = windows[i:i+1,:,y:y+s,x:x+s]
        res.append(resized(p if limit is None else resized(p, min(int(limit[i]), s)), size))
    return torch.cat(res)

# %% ../nbs/papers/30_instance_ssl.ipynb #be4233ad
class PretextTask(nn.Module):
    "Base of the pretexts: windows to input and target, on the device"
    turn = True # may windows be turned beforehand?
    each = 3 # windows per triplet's worth of work: others get three times as many windows, so that the encoder sees as many patches
    def __init__(self,
        recipe, # `InstanceRecipe`
    ):
        super().__init__()
        self.r,self.jitter = recipe,HEJitter(recipe.stain_jitter, recipe.stain_shift)

    def anywhere(self, x): # float (B,3,W,W) to (B,3,S,S)
        "One patch of the anchor's side from each window"
        return cut_patches(x, triplet_boxes(len(x), self.r)[:,0], self.r.size)

class Triplets(PretextTask):
    "Anchors, positives and negatives, one after the other (Sec. 2.1)"
    each = 1
    def forward(self, x, y=None): # float (B,3,W,W) to (3B,3,S,S) and the sides of the negatives (B,)
        boxes = triplet_boxes(len(x), self.r)
        small = boxes[:,2,2]
        limit = small if self.r.blur_match else None
        parts = [cut_patches(x, boxes[:,i], self.r.size, limit if i<2 else None) for i in range(3)]
        return self.jitter(torch.cat(parts)),small.to(x.device)

# %% ../nbs/papers/30_instance_ssl.ipynb #d310afcf
def permutation_set(
    n:int, # orders wanted
    parts:int=9, # things to be ordered
    seed:int=0, # of the first order and of the candidates
)->torch.Tensor: # (n,parts)
    "Orders that differ from each other in many places"
    if n>math.factorial(parts): raise DataError(f'{parts} things have {math.factorial(parts)} orders, not {n}')
    g = torch.Generator().manual_seed(seed)
    cand = torch.stack([torch.randperm(parts, generator=g) for _ in range(2000)]).unique(dim=0)
    if len(cand)<n: raise DataError(f'{n} orders are too many', fix='Ask for fewer')
    chosen = cand[:1]
    while len(chosen)<n: chosen = torch.cat([chosen, cand[(cand[:,None]!=chosen).sum(-1).amin(1).argmax()][None]])
    return chosen

class Turns(PretextTask):
    "RotNet: by how many quarters was it turned?"
    turn = False
    def forward(self, x, y=None): # float (B,3,W,W) to (B,3,S,S) and classes (B,)
        k = torch.randint(4, (len(x),))
        return self.jitter(torch.stack([p.rot90(int(n), (-2,-1)) for p,n in zip(self.anywhere(x), k)])),k.to(x.device)

# %% ../nbs/papers/30_instance_ssl.ipynb #dddcbbb2
class Jigsaw(PretextTask):
    "Nine tiles in one of `orders` orders"
    orders = 24
    def __init__(self, recipe):
        super().__init__(recipe)
        self.set = permutation_set(self.orders)

    def forward(self, x, y=None): # float (B,3,W,W) to (9B,3,t,t) and classes (B,)
        p,k = self.anywhere(x),torch.randint(self.orders, (len(x),))
        cell = p.shape[-1]//3
        side = max(cell*7//8, 1)
        def tile(o, i):
            y,x = (int(n)*cell+int(torch.randint(cell-side+1, (1,))) for n in (i//3, i%3))
            return o[:,y:y+side,x:x+side]
        tiles = [torch.stack([tile(o, i) for i in self.set[n]]) for o,n in zip(p, k)]
        return self.jitter(torch.cat(tiles)),k.to(x.device)

class Colours(PretextTask):
    "ColorMe: green is shown, red and blue are wanted"
    def forward(self, x, y=None): # float (B,3,W,W) to (B,3,S,S), three times green, and (B,2,S,S), red and blue
        p = self.jitter(self.anywhere(x))
        return p[:,1:2].expand(-1, 3, -1, -1).contiguous(),p[:,::2]

# %% ../nbs/papers/30_instance_ssl.ipynb #d8235999
class Encoder(nn.Module):
    "A network of timm as a pyramid of features; images are brought to ImageNet's mean and deviation inside"
    def __init__(self,
        name:str, # of timm's
        imagenet:bool=False, # with ImageNet weights, where they can be had
    ):
        super().__init__()
        if name not in timm.list_models(): raise DataError(f'timm has no network {name!r}', fix='timm.list_models() names them: resnet18, resnet34, resnet101 ...')
        self.norm = NormaliseChannels(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
        try:
            self.net,self.started = with_weights(lambda load: smp.encoders.get_encoder(f'tu-{name}', weights=load or None), imagenet, name)
            with torch.no_grad(): sides = [o.shape[-1] for o in self.net.eval()(torch.zeros(1, 3, 64, 64))]
        except Exception as e: raise DataError(f'{name} cannot be the encoder of a U-Net ({e})', fix='Take a ResNet, such as resnet18') from None
        if sides!=[64,32,16,8,4,2]: raise DataError(f'{name} cannot be the encoder of a U-Net: its features have sides {sides} for 64 px', fix='Take a ResNet, such as resnet18')
        self.net.train()
        self.channels = self.net.out_channels

    def forward(self, x): return self.net(self.norm(x)) # float (B,3,H,W) in [0,1] to features, each half the size of the one before

def make_encoder(
    recipe, # `InstanceRecipe`
)->Encoder:
    "The encoder of a recipe, as it starts"
    return Encoder(recipe.encoder, recipe.imagenet)

# %% ../nbs/papers/30_instance_ssl.ipynb #0dc563e6
class TripletHead(nn.Module):
    "Embedding z and count score f(z) (Sec. 2.2)"
    def __init__(self,
        channels, # of the encoder's features
        recipe, # `InstanceRecipe`
    ):
        super().__init__()
        self.normalise,self.embed,self.count = recipe.normalise,nn.Linear(channels[-1], recipe.dim),nn.Conv2d(recipe.dim, 1, 1)

    def forward(self, feats):
        "Embeddings (B,D) and scores (B,)"
        z = self.embed(feats[-1].mean((2,3)))
        if self.normalise: z = F.normalize(z)
        return z,self.count(z[...,None,None]).flatten()

# %% ../nbs/papers/30_instance_ssl.ipynb #612224aa
class ClassHead(nn.Module):
    "Scores of classes, from one patch or from several together"
    def __init__(self, channels, recipe, classes, parts=1):
        super().__init__()
        self.parts,self.embed,self.out = parts,nn.Linear(channels[-1], recipe.dim),nn.Linear(parts*recipe.dim, classes)

    def forward(self, feats): # features of (B*parts) patches to scores (B,classes)
        return self.out(self.embed(feats[-1].mean((2,3))).relu().reshape(-1, self.parts*self.embed.out_features))

class ColourHead(nn.Module):
    "Red and blue at a quarter of the resolution, and logarithms of their distributions"
    bins = 16
    def __init__(self, channels, recipe):
        super().__init__()
        self.side = nn.ModuleList(nn.Conv2d(c, 32, 1) for c in channels[2:])
        self.out,self.dist = nn.Conv2d(32, 2, 3, padding=1),nn.Linear(channels[-1], 2*self.bins)

    def forward(self, feats): # (B,2,S/4,S/4) and (B,2,bins)
        x = sum(F.interpolate(s(o), feats[2].shape[-2:], mode='bilinear') for s,o in zip(self.side, feats[2:]))
        return self.out(x.relu()),self.dist(feats[-1].mean((2,3))).view(-1, 2, self.bins).log_softmax(-1)

class PretextNet(nn.Module):
    "Shared encoder and the head of a pretext"
    def __init__(self, encoder, head):
        super().__init__()
        self.encoder,self.head = encoder,head

    def forward(self, x): return self.head(self.encoder(x))

# %% ../nbs/papers/30_instance_ssl.ipynb #b75d1609
class ResUNet(nn.Module):
    "U-Net of three classes on the encoder of a recipe (Sec. 2.2)"
    def __init__(self,
        recipe, # `InstanceRecipe`
    ):
        super().__init__()
        self.encoder,unet = make_encoder(recipe),smp.Unet(f'tu-{recipe.encoder}', encoder_weights=None, decoder_channels=recipe.decoder, classes=3)
        self.decoder,self.head,self.started = unet.decoder,unet.segmentation_head,self.encoder.started

    def forward(self, x): # float (B,3,H,W) in [0,1], sides multiples of 32, to scores (B,3,H,W)
        return self.head(self.decoder(self.encoder(x)))

@patch
def take_over(self:ResUNet,
    encoder, # `Encoder`, after a pretext
    name:str='pretext', # how it was trained, kept in `started`
)->ResUNet: # itself
    "Copy the weights of an encoder; the decoder stays random"
    have,want = ({k:v.shape for k,v in o.state_dict().items()} for o in (encoder, self.encoder))
    if have!=want: raise DataError('these are the weights of another encoder', fix='Pretext and target need the same `encoder` in their recipes')
    self.encoder.load_state_dict(encoder.state_dict())
    self.started = name
    return self

# %% ../nbs/papers/30_instance_ssl.ipynb #4c900364
def squared_distance(
    a, # (B,D)
    b, # (B,D)
): # (B,)
    "Squared Euclidean distance"
    return (a-b).square().sum(1)

def scale_triplet_loss(
    za, # embeddings of anchors (B,D)
    zp, # of positives
    zn, # of negatives
    margin:float=1., # m1
): # float ()
    "Eq. 1, Xie et al. 2020, mean over the batch"
    return F.triplet_margin_with_distance_loss(za, zp, zn, distance_function=squared_distance, margin=margin)

def count_ranking_loss(
    sp, # scores of positives (B,)
    sn, # of negatives
    margin:float=1., # m2
): # float ()
    "Eq. 2, Xie et al. 2020, mean over the batch"
    return F.margin_ranking_loss(sp, sn, torch.ones_like(sp), margin=margin)

# %% ../nbs/papers/30_instance_ssl.ipynb #d0b3f2e7
class InstanceLoss:
    "Sum of both losses (Eq. 3)"
    def __init__(self,
        recipe, # `InstanceRecipe`
    ): self.r = recipe

    def parts(self, out): # embeddings (3B,D) and scores (3B,) to both losses
        (za,zp,zn),(_,sp,sn) = (o.float().chunk(3) for o in out)
        return scale_triplet_loss(za, zp, zn, self.r.margin_triplet),count_ranking_loss(sp, sn, self.r.margin_ranking)

    def __call__(self, out, y=None):
        triplet,ranking = self.parts(out)
        return self.r.triplet*triplet+self.r.ranking*ranking

# %% ../nbs/papers/30_instance_ssl.ipynb #bbd3e683
def right_triplet(out, y=None):
    "Share of triplets whose positive is nearer to the anchor than the negative"
    za,zp,zn = out[0].chunk(3)
    return (squared_distance(za, zp)<squared_distance(za, zn)).float().mean()

def right_order(out, y=None):
    "Share of triplets whose positive has the higher count score"
    _,sp,sn = out[1].chunk(3)
    return (sp>sn).float().mean()

# %% ../nbs/papers/30_instance_ssl.ipynb #dc741c18
def colour_counts(
    y, # red and blue, float (B,2,S,S) in [0,1]
    bins:int=ColourHead.bins,
): # (B,2,bins), sums to 1
    "Distributions of red and blue"
    k = (y*bins).long().clamp(0, bins-1).flatten(2)
    return F.one_hot(k, bins).float().mean(2)

def colour_loss(out, y):
    "Absolute error of the pictures and divergence of the distributions"
    maps,dist = out
    return F.l1_loss(maps.float(), resized(y, maps.shape[-1]))+F.kl_div(dist.float(), colour_counts(y), reduction='batchmean')/2

def colour_error(out, y):
    "Mean error of red and blue, in grey levels of 0 to 255"
    return 255*(out[0].float()-resized(y, out[0].shape[-1])).abs().mean()

# %% ../nbs/papers/30_instance_ssl.ipynb #23c6e555
system_changes = {'SSL':{}, 'ST':dict(ranking=0.), 'CR':dict(triplet=0.), 'SSL matched':dict(blur_match=True), 'Jigsaw':{}, 'RotNet':{}, 'ColorMe':{}, 'ImageNet':dict(imagenet=True), 'scratch':dict(imagenet=False)}
Pretext = namedtuple('Pretext', 'task net loss metrics')

def system_recipe(
    system:str, # a key of `system_changes`
    recipe, # `InstanceRecipe`
)->InstanceRecipe:
    "The recipe of one of the systems of Tables 1 to 3, or of ours"
    if system not in system_changes: raise DataError(f'there is no system {system!r}', fix=f'Choose one of {", ".join(system_changes)}')
    return replace(recipe, **system_changes[system])

def pretext_net(
    system:str, # a key of `system_changes`
    recipe, # its recipe, of `system_recipe`
)->Pretext: # what sets the question, the network, its loss and what is watched
    "All that a pretext needs"
    if system not in system_changes or system in ('scratch','ImageNet'): raise DataError(f'there is no pretext {system!r}', fix=f'Choose one of {", ".join(list(system_changes)[:-2])}')
    enc = make_encoder(recipe)
    make = lambda head, *a: PretextNet(enc, head(enc.channels, recipe, *a))
    if system=='RotNet': return Pretext(Turns(recipe), make(ClassHead, 4), CrossEntropyLossFlat(), [class_accuracy])
    if system=='Jigsaw': return Pretext(Jigsaw(recipe), make(ClassHead, Jigsaw.orders, 9), CrossEntropyLossFlat(), [class_accuracy])
    if system=='ColorMe': return Pretext(Colours(recipe), make(ColourHead), colour_loss, [colour_error])
    return Pretext(Triplets(recipe), make(TripletHead), InstanceLoss(recipe), [right_triplet, right_order])

# %% ../nbs/papers/30_instance_ssl.ipynb #3f48d042
class InstanceTrace(Callback):
    "Both losses of `InstanceLoss` and the shares answered right, a row a training batch, in `table`"
    run_valid = False
    def __init__(self): self.rows = []
    def before_fit(self): self.rows = []
    def state_dict(self): return dict(rows=self.rows)
    def load_state_dict(self, state): self.rows = list(state['rows'])

    def after_loss(self):
        now = *self.loss_func.parts(self.pred),right_triplet(self.pred),right_order(self.pred)
        self.rows.append(torch.stack([o.detach().float() for o in now]))

    @property
    def table(self): return pd.DataFrame(torch.stack(self.rows).cpu() if self.rows else [], columns=['triplet_loss','ranking_loss','right_triplet','right_order'])

# %% ../nbs/papers/30_instance_ssl.ipynb #a4bb84f9
def pretext_learner(
    system:str, # a key of `system_changes` that has a pretext
    samples, # list of `Sample` to learn from; their annotation is not looked at
    valid, # list of `Sample` to watch
    recipe, # `InstanceRecipe`
    folder=None, # where a checkpoint is kept, so that a training that was killed goes on
    cbs=None, # more callbacks
)->Learner:
    "A learner of the pretext (Sec. 2.2)"
    r,device = system_recipe(system, recipe),get_device()
    set_seed(r.seed)
    p = pretext_net(system, r)
    bs = r.batch_size*p.task.each
    windows = lambda s, n, seed=None: Windows([small_image(o.image, r) for o in s], r.window, n*bs, seed, [o.name for o in s], p.task.turn)
    loaders = DataLoader(windows(samples, r.batches), bs=bs, device=device),DataLoader(windows(valid, 4, r.seed), bs=bs, device=device)
    cbs = [*L(cbs), DeviceAugment(p.task, valid=True, targets=True), Monitor(), StopOnNaN(), *speedups(device)]
    if isinstance(p.task, Triplets): cbs.append(InstanceTrace())
    if folder: cbs.append(Checkpoint(out_folder(folder), recipe=r))
    return Learner(DataLoaders(*loaders, device=device), p.net, p.loss, opt_func=Adam, lr=r.lr, wd=r.wd, metrics=p.metrics, cbs=cbs)

# %% ../nbs/papers/30_instance_ssl.ipynb #5465f788
@torch.no_grad()
def shortcut_test(
    net, # `PretextNet` of triplets
    windows, # uint8 (N,3,W,W)
    recipe, # `InstanceRecipe`
)->pd.DataFrame: # a row per side and kind of question: share of triplets and of orders answered as if it were enlarged
    "How much of the pretext is answered by the blur?"
    net,r,rows = net.eval(),recipe,[]
    x = as_batch(windows, next(net.parameters()).device)
    for part in r.pool:
        boxes = triplet_boxes(len(x), replace(r, pool=(part,)))
        limit = boxes[:,2,2]
        sharp,blurred = ([cut_patches(x, boxes[:,i], r.size, l) for i in range(2)] for l in (None, limit))
        negative = cut_patches(x, boxes[:,2], r.size)
        for kind,(p,n) in dict(usual=(sharp, negative), all_blurred=(blurred, negative), blur_alone=(sharp, blurred[1])).items():
            out = net(torch.cat([*p, n]))
            rows.append(dict(side=int(limit[0]), kind=kind.replace('_', ' '), triplet=right_triplet(out).item(), order=right_order(out).item()))
    return pd.DataFrame(rows)

# %% ../nbs/papers/30_instance_ssl.ipynb #c5502b6b
@torch.no_grad()
def count_table(
    net, # `PretextNet` of triplets
    samples, # list of annotated `Sample`
    recipe, # `InstanceRecipe`
    n:int=64, # patches
    seed:int=0, # of the drawing
)->pd.DataFrame: # a row per patch: count of nuclei, score
    "Score f(z) beside the true number of nuclei"
    net,r = net.eval(),recipe
    ds = Windows([np.dstack([small_image(s.image, r), small_instances(s.instances, r)]) for s in samples], triplet_sizes(r)[0], n, seed)
    cuts = [ds.draw(i) for i in range(n)]
    x = as_batch(np.stack([o[...,:3].astype(np.uint8) for o in cuts]), next(net.parameters()).device)
    return pd.DataFrame(dict(count=[np.count_nonzero(np.unique(o[...,3])) for o in cuts], score=net(resized(x, r.size))[1].cpu().numpy()))

# %% ../nbs/papers/30_instance_ssl.ipynb #9d197e09
@torch.no_grad()
def density_map(
    net, # `PretextNet` of triplets
    image, # uint8 (H,W,3) at the recipe's resolution
)->np.ndarray: # float32 (h,w), h = H/32; its mean is f(z)
    "What each place adds to the count score (Fig. 3, with the encoder's last features)"
    net,head = net.eval(),net.head
    feats = net.encoder(as_batch(image[None], next(net.parameters()).device))[-1][0]
    z,f = head.embed(feats.mean((1,2))),head.count.weight.flatten()
    length = z.norm() if head.normalise else 1
    each = torch.einsum('c,chw->hw', f@head.embed.weight, feats)
    return ((each+f@head.embed.bias)/length+head.count.bias).cpu().numpy()

# %% ../nbs/papers/30_instance_ssl.ipynb #7230ca44
def boundary_map(
    instances, # int32 (H,W)
    width:int=1, # pixels of a nucleus with another label within a disk of this radius are boundary, px
)->np.ndarray: # uint8 (H,W): 0 background, 1 body, 2 boundary
    "The classes of the target task (Sec. 2.2)"
    near = np.hypot(*np.mgrid[-width:width+1,-width:width+1])<width+0.5
    inner = ndi.minimum_filter(instances, footprint=near)==ndi.maximum_filter(instances, footprint=near)
    return np.where(instances>0, np.where(inner, 1, 2), 0).astype(np.uint8)

# %% ../nbs/papers/30_instance_ssl.ipynb #e4c655c5
class LabelledCrops(Windows):
    "Random crops of annotated samples with their classes"
    def __init__(self,
        samples, # list of `Sample`
        recipe, # `InstanceRecipe`
        n:int, # items an epoch
        seed:int|None=None, # as in `Windows`
    ):
        for s in samples:
            if s.load_instances is None: raise DataError('this image has no outlines to learn from', s.path, 'Leave it out')
        both = [np.dstack([small_image(s.image, recipe), boundary_map(small_instances(s.instances, recipe), recipe.boundary)]) for s in samples]
        super().__init__(both, recipe.crop, n, seed, [s.name for s in samples])

    def __getitem__(self, i):
        "A crop uint8 (3,S,S) and its classes int64 (S,S)"
        t = torch.from_numpy(self.draw(i))
        return t[...,:3].permute(2,0,1),t[...,3].long()

def issl_dls(
    samples, # list of annotated `Sample`
    recipe, # `InstanceRecipe`
    valid=None, # list of `Sample` to watch; those of training if none
    device=None, # the best there is, if none
)->DataLoaders: # batches of uint8 (B,3,S,S) and classes (B,S,S)
    "Loaders of the target task"
    r,device = recipe,device or get_device()
    set_seed(r.seed)
    train = DataLoader(LabelledCrops(samples, r, r.fit_batch_size*r.fit_batches), bs=r.fit_batch_size, device=device)
    fixed = DataLoader(LabelledCrops(valid or samples, r, 4*r.fit_batch_size, r.seed), bs=r.fit_batch_size, device=device)
    return DataLoaders(train, fixed, device=device)

# %% ../nbs/papers/30_instance_ssl.ipynb #d8a519a0
def issl_learner(
    dls, # of `issl_dls`
    recipe, # `InstanceRecipe`
    encoder=None, # `Encoder` after a pretext; the recipe's start if none
    folder=None, # where a checkpoint is kept
    cbs=None, # more callbacks
)->Learner:
    "A learner of the target task (Sec. 2.2)"
    r = recipe
    set_seed(r.seed)
    model = ResUNet(r) if encoder is None else ResUNet(replace(r, imagenet=False)).take_over(encoder)
    weight = torch.tensor([1.,1.,r.boundary_weight], device=dls.device)
    cbs = [*L(cbs), DeviceAugment(HEJitter(r.stain_jitter, r.stain_shift)), Monitor(), StopOnNaN(), *speedups(dls.device)]
    if folder: cbs.append(Checkpoint(out_folder(folder), recipe=r))
    split = lambda m: [params(m.encoder), params(m.decoder)+params(m.head)]
    learn = Learner(dls, model, CrossEntropyLossFlat(axis=1, weight=weight), opt_func=Adam, lr=r.fit_lr, wd=r.wd, metrics=DiceMulti(), splitter=split, cbs=cbs)
    if r.freeze: learn.freeze()
    return learn

# %% ../nbs/papers/30_instance_ssl.ipynb #756dd8e6
def issl_map(
    model, # `ResUNet`, or a Learner of one
    image, # uint8 (H,W,3)
    recipe, # `InstanceRecipe`
)->np.ndarray: # float32 (3,H,W): probabilities of background, body and boundary
    "Sliding windows, averaged over views (Sec. 2.2 and the one-step network it follows)"
    model,k,(h,w) = getattr(model, 'model', model),recipe.shrink,check_image(image).shape[:2]
    device = next(model.parameters()).device
    model.eval()
    def predict(x): return sum(turned_back(model(turned(x, i)).softmax(1), i) for i in range(recipe.views))/recipe.views
    small = small_image(np.pad(image, ((0,-h%k), (0,-w%k), (0,0)), 'edge'), recipe)
    prob = sliding_map(predict, small, recipe.crop, recipe.overlap, device=device)
    return prob if k==1 else F.interpolate(torch.from_numpy(prob)[None], scale_factor=k, mode='bilinear')[0,:,:h,:w].numpy()

# %% ../nbs/papers/30_instance_ssl.ipynb #e0aa9b63
def nuclei_from(
    prob, # float (3,H,W): probabilities of background, body, boundary
    recipe, # `InstanceRecipe`; its lengths are px of this map
)->np.ndarray: # int32 (H,W), 0 is background
    "Instances of a map of the three classes"
    r = recipe
    if r.split=='bodies': return boundary_instances(prob, r.min_size)
    mask = drop_small(prob[0]<0.5, r.min_size)
    height = ndi.gaussian_filter(mask_distance(mask)*prob[1], r.sigma)
    peaks,pieces = find_peaks(height, mask, r.peak),ndi.label(mask)[0]
    peaks |= mask & ~np.isin(pieces, pieces[peaks]) # a small piece beside a large one has no peak of its own
    res = watershed(-height, ndi.label(peaks, np.ones((3,3)))[0], mask=mask).astype(np.int32)
    return relabel_sequential(np.where((np.bincount(res.ravel())>=r.min_size)[res], res, 0))[0].astype(np.int32)

# %% ../nbs/papers/30_instance_ssl.ipynb #b77dd7fd
Segmentation = namedtuple('Segmentation', 'prob instances') # float (3,H,W); int32 (H,W), 0 is background

def issl_predict(
    model, # `ResUNet`, or a Learner of one
    image, # uint8 (H,W,3)
    recipe, # `InstanceRecipe`
)->Segmentation:
    "The nuclei of an image"
    prob = issl_map(model, image, recipe)
    return Segmentation(prob, nuclei_from(prob, recipe))

# %% ../nbs/papers/30_instance_ssl.ipynb #d37a47fa
def issl_evaluate(
    model, # `ResUNet`, a Learner of one, or a function from uint8 (H,W,3) to an instance map (H,W)
    samples, # list of annotated `Sample`
    recipe=None, # `InstanceRecipe`, for a model
)->pd.DataFrame: # a row per image: aji, dice, dice2, pq and others
    "All scores on samples"
    net = getattr(model, 'model', model)
    if isinstance(net, nn.Module) and recipe is None: raise DataError('a model needs its recipe', fix='issl_evaluate(model, samples, recipe)')
    predict = (lambda img: issl_predict(net, img, recipe).instances) if isinstance(net, nn.Module) else model
    return instance_table((s.instances for s in samples), (predict(s.image) for s in samples), [s.name for s in samples])

# %% ../nbs/papers/30_instance_ssl.ipynb #45e2a786
def fraction_of(
    samples, # list of `Sample`
    fraction:float, # of them, in (0,1]
    recipe, # `InstanceRecipe`; its seed draws
)->list: # of `Sample`
    "A share of annotated images: whole ones, and a part of one"
    if not 0<fraction<=1: raise DataError(f'a fraction lies above 0 and not above 1, not {fraction}')
    order = np.random.default_rng(recipe.seed).permutation(len(samples))
    n = fraction*len(samples)
    whole,rest = int(n+1e-6),n-int(n+1e-6)
    res = [samples[i] for i in order[:whole]]
    if rest>1e-6:
        last = samples[order[whole]]
        side = min(*last.shape, int(math.sqrt(math.prod(last.shape)*rest)))
        if side>=recipe.crop*recipe.shrink: res.append(middle(last, side))
    if not res: raise DataError(f'{fraction:.2%} of {len(samples)} images leave nothing as large as a crop', fix='Choose a larger fraction, or a smaller crop')
    return res

# %% ../nbs/papers/30_instance_ssl.ipynb #70cb9416
Row = namedtuple('Row', 'system fraction seed fold frozen', defaults=(1., 42, None, False))
label_shares = 1.,.7,.5,.3,.1

def row_name(
    row, # `Row`
)->str:
    "Its name in the ledger"
    return f'{row.system}{" frozen" if row.frozen else ""} {100*row.fraction:g}%'

# %% ../nbs/papers/30_instance_ssl.ipynb #d9f298e1
def row_recipe(
    row, # `Row`
    recipe, # `InstanceRecipe`
)->InstanceRecipe:
    "The recipe with the seed and the changes of a row"
    return replace(system_recipe(row.system, recipe), seed=row.seed, freeze=row.frozen)

def row_data(
    row, # `Row`
    dataset:str, # such as 'CPM'
)->str:
    "The name of its data in the ledger: a fold of Table 4 has one of its own"
    return f'{dataset} fold {row.fold}' if row.fold else dataset

def table_rows(
    table:int, # of the paper, 1 to 4
    seeds=(42,), # repetitions
)->list: # of `Row`, the most telling ones first
    "What the tables of the paper are made of"
    if table not in (1,2,3,4): raise DataError(f'there is no table {table}', fix='The paper has tables 1 to 4')
    if table==4: return [Row(s, 1., seed, f) for seed in seeds for f in range(1, 6) for s in ('scratch','SSL')]
    if table==1: return [Row(s, f, seed) for f in sorted(label_shares) for seed in seeds for s in ('scratch','SSL','ImageNet')]
    systems = {2:('scratch','ImageNet','Jigsaw','RotNet','ColorMe','SSL'), 3:('scratch','ST','CR','SSL')}[table]
    return [Row(s, 1., seed) for seed in seeds for s in systems]

# %% ../nbs/papers/30_instance_ssl.ipynb #4ded4a79
def issl_pretext(
    system:str, # a key of `system_changes`
    samples, # list of `Sample` to learn from
    valid, # list of `Sample` to watch
    recipe, # `InstanceRecipe`
    folder=None, # where it is kept
): # `PretextNet`; none for the systems without a pretext
    "The network of a system after its pretext"
    if system in ('scratch','ImageNet'): return None
    r,place = system_recipe(system, recipe),folder and Path(folder)/f'{system.replace(" ", "_")}-{recipe.seed}'
    if place and (file := place/'pretext.safetensors').exists():
        net,kept = load_model(file, lambda o: pretext_net(system, replace(o, imagenet=False)).net, InstanceRecipe)
        if kept!=r: raise DataError('this pretext was trained with another recipe', file, 'Choose another folder')
        return net
    learn = pretext_learner(system, samples, valid, recipe, place and place/'checkpoint')
    with quiet(learn, f'{system}, pretext'): learn.fit_one_cycle(r.epochs, r.lr)
    if place:
        write_json(place/'history.json', history(learn).round(4).to_dict('list'))
        save_model(learn.model, file, r)
    return learn.model

# %% ../nbs/papers/30_instance_ssl.ipynb #1142920e
def issl_fit(
    row, # `Row`
    samples, # list of `Sample` whose `split` is 'train', 'val', ..., or 'fold 1' to 'fold 5'
    recipe, # `InstanceRecipe`
    folder=None, # where encoders and checkpoints are kept
)->tuple: # trained Learner of `ResUNet`, its recipe
    "Pretext and target training of one row"
    parts = {k:[s for s in samples if s.split==k] for k in dict.fromkeys(s.split for s in samples)}
    train = [s for k,v in parts.items() if str(k).startswith('fold ') and k!=f'fold {row.fold}' for s in v] if row.fold else parts.get('train', [])
    if not train or row.fold and f'fold {row.fold}' not in parts: raise DataError(f'there is nothing to train on for {row}', fix=f'The samples have the splits {", ".join(map(str, parts))}')
    r = row_recipe(row, recipe)
    few,valid,place = fraction_of(train, row.fraction, r),parts.get('val', train),folder and Path(folder)/f'fold {row.fold or 0}'
    if place: check_samples(train, place)
    net = issl_pretext(row.system, train, valid, replace(r, freeze=False), place and place/'pretext')
    name = f'{row_name(row)}-{row.seed}'.replace(' ', '_')
    learn = issl_learner(issl_dls(few, r, valid), r, net and net.encoder, place and place/name)
    if row.system=='ImageNet' and learn.model.started!='imagenet': raise DataError(f'the ImageNet weights of {r.encoder} cannot be had here', fix='Leave the system ImageNet out, or go online once')
    if net: learn.model.started = row.system
    with quiet(learn, f'{row_name(row)}, nuclei'): learn.fit_one_cycle(r.fit_epochs, r.fit_lr)
    return learn,r

# %% ../nbs/papers/30_instance_ssl.ipynb #7ba9fc50
def issl_row(
    row, # `Row`
    samples, # as for `issl_fit`
    recipe, # `InstanceRecipe`
    dataset:str='MoNuSeg', # name, for the ledger
    folder=None, # as for `issl_fit`
    scale=None, # of the run, for the ledger
    results=None, # folder of the ledger
)->dict: # (data set, split): DataFrame of `issl_evaluate`
    "Train, measure and write down one number of the paper"
    start = time.time()
    learn,r = issl_fit(row, samples, recipe, folder)
    done = {}
    for split in dict.fromkeys(s.split for s in samples):
        if split=='train' or row.fold and split!=f'fold {row.fold}': continue
        done[row_data(row, dataset),split] = table = issl_evaluate(learn, [s for s in samples if s.split==split], r)
        about = dict(recipe=r.to_dict(), started=learn.model.started, fraction=row.fraction, peak_memory=learn.monitor.table.memory_mb.max()/1024)
        save_scores(table[['aji','dice','dice2','pq']], 'instance_ssl', row_name(row), row_data(row, dataset), split, scale=scale, seed=row.seed,
            device=learn.dls.device, seconds=time.time()-start, folder=results, **about)
    return done

# %% ../nbs/papers/30_instance_ssl.ipynb #0d66de39
def fold_mean(
    row, # `Row`; its fold does not matter
    dataset:str='CPM', # name, for the ledger
    scale:str='small', # of the runs
    results=None, # folder of the ledger
    folds:int=5, # how many there are
)->bool: # were all there?
    "The mean over the folds of Table 4, into the ledger"
    df = ledger.results('instance_ssl', results)
    names = [f'{dataset} fold {i}' for i in range(1, folds+1)]
    df = df[(df.system==row_name(row))&(df.scale==scale)&(df.seed==row.seed)&df.dataset.isin(names)]
    for metric,runs in df.groupby('metric'):
        if set(runs.dataset)!=set(names): return False
        values = {k:v for o in runs.per_image for k,v in o.items()}
        save_result('instance_ssl', row_name(row), dataset, f'{folds} folds', metric, runs.value.mean(), values, scale, row.seed, folder=results)
    return len(df)>0

# %% ../nbs/papers/30_instance_ssl.ipynb #2336c41d
def issl_grid(
    rows, # list of `Row`
    samples, # as for `issl_fit`
    recipe, # `InstanceRecipe`
    dataset:str='MoNuSeg', # name, for the ledger
    folder=None, # as for `issl_fit`
    scale=None, # of the runs, for the ledger
    results=None, # folder of the ledger
)->list: # of the rows that were run
    "All rows that are not in the ledger yet"
    run,scale = [],get_scale(scale)
    for row in rows:
        splits = [f'fold {row.fold}'] if row.fold else {s.split for s in samples}-{'train'}
        if not splits or row.fold and splits[0] not in {s.split for s in samples}: raise DataError(f'there is nothing to measure on for {row}', fix="Samples need a split other than 'train', or that fold")
        sets = [(row_data(row, dataset),o) for o in splits]
        if is_done('instance_ssl', row_name(row), sets, scale, row.seed, 'pq', results, row_recipe(row, recipe)): continue
        print(f'{row_name(row)}, seed {row.seed}'+(f', fold {row.fold}' if row.fold else ''))
        issl_row(row, samples, recipe, dataset, folder, scale, results)
        run.append(row)
    for row in {o._replace(fold=1) for o in rows if o.fold}: fold_mean(row, dataset, scale, results)
    return run

# %% ../nbs/papers/30_instance_ssl.ipynb #196acb83
def issl_samples(
    path=None, # folder of MoNuSeg; `data_folder('monuseg')` if none
    test:bool=False, # the official test images, too, if they are there? For a last measurement only
)->L: # of `Sample`: 24 'train', 6 'val', up to 7 'extra'
    "MoNuSeg as the protocol needs it"
    known = monuseg(path, split='issl')
    names = {s.name for s in known}
    known = L(s for s in known if s.split!='test' or test)
    return known+L(replace(s, split='extra') for s in monuseg(path, extra=True) if s.name not in names)

# %% ../nbs/papers/30_instance_ssl.ipynb #441ab60d
def gains(
    split:str='extra', # part of the data
    dataset:str='MoNuSeg', # name of the data set
    scale:str='small', # scale of the runs
    metric:str='aji', # what is compared
    folder=None, # of the ledger
)->pd.DataFrame: # a row per system and fraction: gain over scratch in points, its 95 % interval over images, the gain of each seed, what the encoders started from; the paper's gain
    "Gain over training from scratch on the same images"
    df = ledger.results('instance_ssl', folder)
    df = df[(df.dataset==dataset)&(df.split==split)&(df.scale==scale)&(df.metric==metric)]
    claim = claims('instance_ssl')
    claim = claim[(claim.metric==f'{metric} %')&(claim.dataset==dataset)].drop_duplicates('system').set_index('system').value
    rows = []
    for name,runs in df.groupby('system'):
        system,part = name.rsplit(' ', 1)
        base = f'scratch{" frozen" if system.endswith("frozen") else ""} {part}'
        seeds = set(runs.seed)&set(df[df.system==base].seed)
        if name==base or not seeds: continue
        g = paired_gain('instance_ssl', name, base, dataset, split, metric, scale, folder)
        mean = lambda o: df[(df.system==o)&df.seed.isin(seeds)].groupby('seed').value.mean()
        each = ', '.join(f'{100*v:+.1f}' for v in mean(name)-mean(base))
        known = ', '.join(sorted(set(runs.get('started', pd.Series(dtype=str)).dropna())))
        paper = claim[name]-claim[base] if name in claim else np.nan
        rows.append(dict(system=system, labels=part, gain=100*g.value, low=100*g.low, high=100*g.high, seeds=each, started=known, paper=paper))
    return pd.DataFrame(rows)

# %% ../nbs/papers/30_instance_ssl.ipynb #6401c97f
__all__ = [o for o in globals() if not o.startswith('_')] # all that the notebook uses, for `from histolab_nb.instance_ssl import *`
