"""Sums of estimates: which estimates of a mixture belong to which reference.

A loss compares one estimate with one target. A mixture with several queries has several estimates,
which are therefore added up first. The estimates of the captions belong to the target. A step of
one's own can add estimates without a caption, which are assigned as `loss.assign` says, for each
mixture with the least loss.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.training.losses import (
    Assign,
    Batch,
    LossConfig,
    Outputs,
    loss_terms,
    total_loss,
)

_INACTIVE = -30.0  # logit of the activity of a sum of no estimates


def sums(num_slots: int, assign: Assign) -> np.ndarray:
    """Return the P allowed assignments `(P, M, R)` of R unnamed estimates to M references, 0 or 1.

    The target is the first reference. With `given` it is the only one, and unnamed estimates belong
    to none. Otherwise the rest of the mixture is the second: `any` assigns each estimate to either
    (MixIT, 2020), `one_each` one of two estimates to each (PIT, 2017).

    Raises:
        InputError: there are no unnamed estimates to assign, or not two for `one_each`.
    """
    if (assign == "any" and not num_slots) or (assign == "one_each" and num_slots != 2):
        count = "two estimates" if assign == "one_each" else "estimates"
        problem = f"loss.assign={assign} needs {count} without a caption, not {num_slots}"
        raise InputError(f"{problem}; set loss.assign=given")
    if assign == "given":
        return np.zeros((1, 1, num_slots), np.float32)
    either = list(itertools.product(range(2), repeat=num_slots))
    numbers_PR = np.array(either if assign == "any" else [(0, 1), (1, 0)])
    return (numbers_PR[:, None] == np.arange(2)[:, None]).astype(np.float32)


def grouped(
    config: LossConfig, model: ModelConfig, outputs: Outputs, batch: Batch
) -> tuple[Outputs, Batch]:
    """Return rows of one estimate and one target each: M for each mixture, one after another.

    Args:
        outputs: estimates `(B, K + R, S)`; those without a caption are the last.
        batch: its `member` `(B, K)` names the estimates that belong to the target. Without it, rows
            have one estimate, and both arguments are returned.
    """
    if "member" not in batch:
        return outputs, batch
    member_BK = batch["member"]
    rows, num_named = member_BK.shape
    allowed_PMR = sums(outputs.estimate_BS.shape[1] - num_named, config.assign)
    named_BMK = jnp.stack([member_BK, jnp.zeros_like(member_BK)], axis=1)[:, : allowed_PMR.shape[1]]

    def cost(sums_MR: jax.Array) -> jax.Array:
        """Loss of each mixture, `(B,)`."""
        sums_BMK = jnp.concatenate([named_BMK, jnp.stack([sums_MR] * rows)], axis=-1)
        pairs = summed(jax.lax.stop_gradient(outputs), batch, sums_BMK)
        return jax.vmap(row_loss)(*pairs).reshape(rows, -1).mean(axis=1)

    def row_loss(*row: Outputs | Batch) -> jax.Array:
        outputs, batch = jax.tree.map(lambda x: x[None], row)
        return total_loss(config, loss_terms(config, model, outputs, batch))

    best_B = jnp.zeros(rows, jnp.int32)
    if len(allowed_PMR) > 1:  # one after another: there can be hundreds
        best_B = jnp.argmin(jax.lax.map(cost, jnp.asarray(allowed_PMR)), axis=0)
    sums_BMK = jnp.concatenate([named_BMK, jnp.asarray(allowed_PMR)[best_B]], axis=-1)
    return summed(outputs, batch, sums_BMK)


def summed(outputs: Outputs, batch: Batch, sums_BMK: jax.Array) -> tuple[Outputs, Batch]:
    """Return rows of each of the M references and the sum of its estimates.

    A sum is active where one of its estimates is: its mask holds the largest values of theirs.
    """
    num_references, target_BS, mixture_BS = sums_BMK.shape[1], batch["target"], batch["mixture"]
    references = jnp.stack([target_BS, mixture_BS - target_BS][:num_references], axis=1)
    totals_BMS = jnp.einsum("bmk,bks->bms", sums_BMK, outputs.estimate_BS)
    targets, totals = (x.reshape(-1, x.shape[-1]) for x in (references, totals_BMS))
    mask_BKTFC = outputs.mask_BTFC.reshape(len(sums_BMK), 1, -1, *outputs.mask_BTFC.shape[1:])
    own_BMK = (sums_BMK > 0)[..., None, None, None]
    masks = jnp.where(own_BMK, mask_BKTFC, _INACTIVE).max(axis=2)
    masks = masks.reshape(-1, *masks.shape[2:])
    mixtures = jnp.repeat(mixture_BS, num_references, axis=0)
    return Outputs(totals, masks), {"mixture": mixtures, "target": targets}
