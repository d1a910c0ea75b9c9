"""What a process holds at the moments of a step that can be its fullest, from sizes and settings."""

from torchtune.training.memory_sizes import ModelSizes, Settings

__all__ = ["fullest_moment"]

WRITTEN_OUT = 768
"""Rows of so many tokens have their attention written out on a CPU, which keeps its weights."""
FP32_LOGITS = {False: 2**20, True: 2**25}
"""Logits that the loss has in fp32 at a time, off and on a GPU."""
STILL_NEAR = 2
"""Blocks' inputs that are on a GPU at a time where they are kept on the host."""


def fullest_moment(sizes: ModelSizes, settings: Settings) -> dict[str, int]:
    """Return the bytes of each part in the loss, or where backward begins or ends: the most of them."""
    held = _held(sizes, settings)
    kept, work = _kept(sizes, settings, sizes.blocks), _backward_work(sizes, settings)
    in_loss = {"activations": kept, "loss": _loss(sizes, settings)}
    begins = {"activations": kept + work, "loss": _after_loss(sizes, settings)}
    ends = {
        "activations": _kept(sizes, settings, 1) + work, "gradients": _gradients(sizes, settings)
    }  # fmt: skip
    in_loss["communication"] = _gathered(sizes, settings, blocks=0)
    begins["communication"] = ends["communication"] = _gathered(sizes, settings, blocks=2)
    moments = [{**held, **moment} for moment in (in_loss, begins, ends)]
    return {part: int(size) for part, size in max(moments, key=_total).items()}


def _total(moment: dict[str, float]) -> float:
    return sum(moment.values())


def _held(sizes: ModelSizes, settings: Settings) -> dict[str, float]:
    """Return what is there in all of a step."""
    if settings.states_on_host:
        return {"weights": 0, "gradients": 0, "optimizer": 0}
    frozen = (sizes.parameters - sizes.trained) * sizes.frozen_size
    trained = sizes.trained * sizes.trained_size
    states = settings.states * sizes.trained * (settings.state_size or sizes.trained_size)
    return {
        "weights": (frozen + trained) / settings.shards + _copies(sizes, settings),
        "gradients": _waiting(sizes, settings) if settings.micro_batches > 1 else 0,
        "optimizer": states / settings.shards,
    }


def _copies(sizes: ModelSizes, settings: Settings) -> float:
    """Return the copies of trained weights to compute with, which backward wants where forward ran."""
    if settings.several or sizes.trained_size <= settings.compute_size:
        return 0
    inside = 0 if settings.recompute else sizes.trained_inside
    return (inside + sizes.trained - sizes.trained_inside) * settings.compute_size


def _gradients(sizes: ModelSizes, settings: Settings) -> float:
    if settings.states_on_host:
        return 0
    if settings.in_backward:
        return (sizes.head if sizes.head_trained else 0) * sizes.trained_size / settings.shards
    return sizes.trained * sizes.trained_size / settings.shards


def _waiting(sizes: ModelSizes, settings: Settings) -> float:
    """Return the gradients of a step's earlier micro-batches, which replicas add up in float32."""
    size = 4 if settings.replicas > 1 else sizes.trained_size
    return sizes.trained * size / settings.shards


def _loss(sizes: ModelSizes, settings: Settings) -> float:
    positions = min(settings.chunk_tokens, settings.tokens)
    logits = positions * sizes.vocab // settings.tensor
    copies = (
        1 if settings.compute_size == 4 else 2
    )  # of the part in fp32: converted, and softmax of it
    exact = copies * 4 * min(FP32_LOGITS[settings.on_gpu], logits)
    states = settings.tokens * sizes.dim * settings.compute_size
    return logits * settings.compute_size + exact + states + _after_loss(sizes, settings)


def _after_loss(sizes: ModelSizes, settings: Settings) -> float:
    head = sizes.head // settings.tensor if sizes.head_trained else 0
    return (head + settings.tokens * sizes.dim) * settings.compute_size


def _kept(sizes: ModelSizes, settings: Settings, blocks: int) -> float:
    """Return what `blocks` blocks keep between forward and backward."""
    inputs = min(blocks, STILL_NEAR) if settings.inputs_on_host else blocks
    again = settings.recompute
    given = again * inputs * sizes.dim / settings.tensor
    numbers = given + (1 - again) * blocks * _in_block(sizes, settings)
    return settings.tokens * numbers * settings.compute_size


def _backward_work(sizes: ModelSizes, settings: Settings) -> float:
    """Return what one block makes in backward, with what it makes anew before."""
    own = max(sizes.widest, 2 * _attention(sizes, settings))
    numbers = own + settings.recompute * _in_block(sizes, settings)
    return settings.tokens * numbers * settings.compute_size + _casts(sizes, settings)


def _casts(sizes: ModelSizes, settings: Settings) -> float:
    """Return what torchao makes of the widest matrix on its way to fp8: two copies in fp32."""
    width = sizes.widest / 3
    return settings.fp8 * 2 * 4 * width * max(settings.tokens, sizes.dim)


def _in_block(sizes: ModelSizes, settings: Settings) -> float:
    """Return the numbers that a block keeps of a token where nothing is computed again."""
    elsewhere = sizes.passed * (1 - 1 / settings.tensor)
    return sizes.kept - elsewhere + _attention(sizes, settings)


def _attention(sizes: ModelSizes, settings: Settings) -> int:
    """Return the numbers that attention keeps of a token beside queries, keys, values and result."""
    written_out = not settings.on_gpu and settings.row_tokens <= WRITTEN_OUT
    return sizes.heads * settings.row_tokens if written_out else 0


def _gathered(sizes: ModelSizes, settings: Settings, *, blocks: int) -> float:
    """Return the whole weights of what is outside of the blocks, and of some blocks."""
    if not settings.several:
        return 0
    blocks = blocks if settings.reshard else sizes.blocks
    share = sizes.trained_inside / max(1, sizes.block * sizes.blocks)
    summed = sizes.block * share * 4 if blocks else 0
    gathered = (sizes.outside + blocks * sizes.block) * settings.compute_size
    return (gathered + summed) / settings.tensor
