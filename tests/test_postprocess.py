"ConvCRF against unfold, for any size, batch, window and blur"
import pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from histolab_nb.core import DataError
from histolab_nb.postprocess import *

settings.register_profile('slow_machine', deadline=None)
settings.load_profile('slow_machine')

def unfold_message(crf, q, image):
    "K*q by copying the window of every pixel"
    n = 2*crf.span+1
    def cols(x): return F.unfold(x, n, padding=crf.span).view(*x.shape[:2], n*n, -1)
    small,f = coarse(q, crf.blur),coarse(image, crf.blur)/13
    alike = torch.exp(-0.5*(cols(f)-f.flatten(2)[:,:,None]).square().sum(1))
    d = torch.arange(-crf.span, crf.span+1).double()*crf.blur
    near = torch.exp(-0.5*(d[:,None]**2+d**2)/3**2).view(1, -1, 1)
    res = (cols(small)*(3*near+10*alike)[:,None]).sum(2).view_as(small)
    return fine(res, crf.blur, q.shape[2:])

@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(1, 3), st.integers(0, 99))
def test_message_is_that_of_unfold(b, c, h, w, span, blur, seed):
    rng = torch.Generator().manual_seed(seed)
    q = torch.rand(b, c, h, w, generator=rng, dtype=torch.double).softmax(1)
    image = 2+40*torch.rand(b, 3, h, w, generator=rng, dtype=torch.double)
    crf = ConvCRF(c, 2*span+1, blur, literal=True).double()
    with torch.no_grad(): assert torch.allclose(crf(q, image), unfold_message(crf, q, image), rtol=1e-5)

@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_the_result_is_a_distribution(c, h, w, normalise):
    q = torch.rand(2, c, h, w).mul(8).softmax(1)
    with torch.no_grad(): res = ConvCRF(c, normalise=normalise)(q, torch.rand(2, 3, h, w)*255+1)
    assert res.shape==q.shape and res.min()>=0 and torch.allclose(res.sum(1), torch.ones(2, h, w), atol=1e-5)

def test_images_of_a_batch_do_not_see_each_other():
    q,image = torch.rand(3, 2, 17, 23).softmax(1),torch.rand(3, 3, 17, 23)*255
    crf = ConvCRF(blur=2)
    with torch.no_grad(): assert torch.allclose(crf(q, image), torch.cat([crf(q[i:i+1], image[i:i+1]) for i in range(3)]), atol=1e-5)

def test_long_lines_in_pieces():
    "More than one piece of the line, so that pairs reach across its cuts"
    q,image = torch.rand(1, 2, 300, 301).softmax(1).double(),torch.rand(1, 3, 300, 301).double()*255
    crf = ConvCRF(blur=1, filter_size=5, literal=True).double()
    with torch.no_grad(): assert torch.allclose(crf(q, image), unfold_message(crf, q, image), rtol=1e-5)

@pytest.mark.parametrize('normalise,literal', [(False,False), (True,False), (False,True)])
def test_every_parameter_learns_and_threads_are_as_before(normalise, literal):
    threads = torch.get_num_threads()
    q,image = torch.rand(1, 2, 24, 24).softmax(1),torch.rand(1, 3, 24, 24)*255
    crf = ConvCRF(blur=2, normalise=normalise, literal=literal)
    loss, = crf.fit(q, image, torch.ones(1, 24, 24), epochs=1)
    assert 0<loss<1 and torch.get_num_threads()==threads
    used = [p for n,p in crf.named_parameters() if not (literal and n=='mix_logit')]
    assert all(p.grad is not None and p.grad.abs().sum()>0 for p in used)

def test_threads_are_as_before_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(DataError): ConvCRF()(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4)*9)
    assert torch.get_num_threads()==threads
