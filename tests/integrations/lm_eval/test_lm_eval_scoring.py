"""Texts that share their beginnings score as each text alone, read by plain logits."""

import pytest
import torch
from torchtune.errors import DataError
from torchtune.models import from_pretrained
from torchtune.testing import tiny_checkpoint
from torchtune_integrations.lm_eval.scoring import Request, score


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=128)
    return from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()


def ids(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 260, (count,), generator=generator).tolist()


def alone(model, request):
    """The formula: sum of log-softmax over the whole logits of one text."""
    text = [*request.context, *request.continuation]
    logits = model(torch.tensor([text[-129:-1]]))[0, -len(request.continuation) :]
    targets = torch.tensor(request.continuation)
    chosen = logits.log_softmax(-1).gather(1, targets[:, None]).sum().item()
    return chosen, bool((logits.argmax(-1) == targets).all())


def nested():
    """Beginnings of beginnings, choices, texts that are the beginning of another, doubles."""
    shots, question, other = ids(0, 40), ids(1, 12), ids(2, 15)
    contexts = [
        shots,
        [*shots, *question],
        [*shots, *other],
        [*shots, *question, *other],
        ids(3, 9),
    ]
    asked = [Request(c, ids(seed, 1 + seed % 5)) for c in contexts for seed in range(10, 16)]
    return [*asked, *asked[:3], Request(shots[:20], shots[20:]), Request([7], [8])]


@pytest.mark.parametrize("batch_tokens", [1, 64, 200, 10_000])
def test_shared_beginnings_change_no_score(model, batch_tokens):
    requests = nested()
    found = score(model, requests, batch_tokens=batch_tokens)
    wanted = [alone(model, request) for request in requests]
    assert [one.log_likelihood for one in found] == pytest.approx([p for p, _ in wanted], abs=1e-4)
    assert [one.greedy for one in found] == [greedy for _, greedy in wanted]


def test_the_likeliest_continuation_is_greedy(model):
    context = ids(4, 20)
    best = []
    for _ in range(3):
        best.append(model(torch.tensor([[*context, *best]]))[0, -1].argmax().item())
    found = score(model, [Request(context, best), Request(context, [3, *best])], batch_tokens=64)
    assert [one.greedy for one in found] == [True, False]


def test_a_beginning_is_computed_once(model):
    seen = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    context = ids(5, 100)
    score(model, [Request(context, [a, b]) for a in range(4) for b in range(3)], batch_tokens=500)
    hook.remove()
    assert seen == [100 + 4]  # the last token of a continuation is not read


def test_the_longest_texts_lose_their_beginning(model):
    request = Request(ids(6, 200), ids(7, 5))
    [found] = score(model, [request], batch_tokens=64)
    assert found.log_likelihood == pytest.approx(alone(model, request)[0], abs=1e-4)


def test_nothing_is_certain_and_too_much_is_an_error(model):
    assert score(model, [Request([5], [])], batch_tokens=64) == [(0.0, True)]
    with pytest.raises(DataError, match=r"E-EVAL-LENGTH.*129 tokens"):
        score(model, [Request([5], ids(8, 129))], batch_tokens=64)
