"""Modules:

- `histolab_nb.augment`: Random views of whole batches, made on the device: crops, flips, colour, blur, edges, cutout and the dyes themselves.
- `histolab_nb.cli`: The papers from the command line: run one, segment the nuclei of your images, look after data sets, see what this machine can do, open the notebooks.
- `histolab_nb.core`: The few things every notebook needs: one kind of error, one kind of recipe, a scale, a seed, a device, and files that are never half written.
- `histolab_nb.datasets`: Annotated images of nuclei, glands and tissues, from their official downloads to arrays: one kind of sample, a reader for each data set, splits by patient, cards, checks and downloads.
- `histolab_nb.dclr`: Contrastive learning teaches a deep U-Net what tissue looks like, two clusters turn that into a tumour map, and a convolutional CRF draws its borders.
- `histolab_nb.glands`: Nobody says what a gland is. Its rim of dark nuclei gives it away, what the rim encloses belongs to it, and a network spreads that knowledge to the glands whose rim is broken.
- `histolab_nb.inference`: From a slide to a map: predict every tile, stitch the answers, resume after a kill, and hand the regions to QuPath.
- `histolab_nb.instance_ssl`: A network that has never seen an outlined nucleus is shown a piece of tissue and an enlarged part of it. It has to say which of the two is enlarged and which shows more. Does it learn nuclei that way?
- `histolab_nb.ledger`: What the papers claim, what was measured here, and the table of both.
- `histolab_nb.metrics`: Is the map right? Counting pixels, Dice and its relatives, names for clusters without leaking the truth, how far a number can be trusted, and the scores of nuclei and glands.
- `histolab_nb.phantom`: H&E tissue made from physics, with exact truth: every nucleus, gland and tumour border is known because we put it there.
- `histolab_nb.plots`: Every figure of these notebooks: image grids, overlays, contours, comparisons with the truth, heat maps, learning curves and scale bars.
- `histolab_nb.postprocess`: From a rough map to a clean one, and from a clean one to nuclei: a convolutional CRF that lets every pixel ask its neighbours of the same colour, and a watershed that gives every nucleus a number of its own.
- `histolab_nb.scale_attention`: A network that must guess the magnification of a tile may look at a few pixels only. Where it looks, the paper says, are the nuclei.
- `histolab_nb.slides`: Whole-slide images: open them, read them at the scale you want, find the tissue, cut tiles, write new ones.
- `histolab_nb.stain`: How much dye is in a pixel, and how to make slides of different laboratories look alike: optical density, Macenko, Reinhard, stain separation, H&E jitter.
- `histolab_nb.training`: What a long training run needs around fastai's `Learner`: augmentation on the device, a look at the hardware, weights that are safe to share, and runs that can be killed.
- `histolab_nb.unet_sharp`: Which pixels are nuclei, and of what kind? A network whose every step sees all its scales, gates between them, a loss for classes that are rare, and a look at what that loss really did.
- `histolab_nb.viewer`: Look closely: a slide to pan and zoom in a cell, predictions beside the truth, and the knobs of every paper's post-processing under your fingers."""

__version__ = "0.1.0"
