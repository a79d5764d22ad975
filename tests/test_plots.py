"Pictures of a notebook stay small in Jupyter's own kernel, too"
import base64, io, os
import nbformat.v4 as v4
from PIL import Image
from histolab_nb import cli

def stored_picture(folder, first):
    "The picture that a figure of noise leaves in a notebook that starts with `first`"
    imports = 'import numpy as np, matplotlib.pyplot as plt\nfrom histolab_nb.plots import small_pictures'
    draw = 'plt.figure(figsize=(3,3), dpi=100).gca().imshow(np.random.default_rng(0).integers(150, 220, (200,200,3), np.uint8));'
    nb = v4.new_notebook(cells=[v4.new_code_cell(s) for s in (imports, first, draw)])
    cli.execute(nb, folder, {}, dict(os.environ), say=lambda _: None)
    pics = [o.data['image/png'] for o in nb.cells[2].outputs if 'image/png' in o.get('data', {})]
    assert len(pics)==1
    return base64.b64decode(pics[0])

def test_small_pictures(tmp_path):
    full,small = stored_picture(tmp_path, 'pass'),stored_picture(tmp_path, 'small_pictures()')
    assert len(full)>100_000>len(small)
    images = [Image.open(io.BytesIO(o)) for o in (full, small)]
    assert images[1].mode=='P' and images[0].size==images[1].size
