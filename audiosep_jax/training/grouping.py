"""Sums of estimates: which estimates of a mixture belong to which reference.

A loss compares one estimate with one target. A mixture with several queries has several estimates,
which are therefore added up first. The estimates of queries belong to the target or to the rest of
the mixture. Those of slots, which nothing describes, are assigned for each mixture in the way that
has the least loss.
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


def sums(num_queries: int, num_slots: int, assign: Assign) -> np.ndarray:
    """Return every allowed assignment of R slots to two references, as matrices of 0 and 1.

    The references are the target and the rest of the mixture. `any` assigns each slot to either
    (MixIT, 2020). With `one_each` both references have one estimate: two slots have one each (PIT,
    2017), a slot beside one query has the rest, and one slot alone has either.

    Returns:
        The P assignments `(P, 2, R)`.

    Raises:
        InputError: `one_each` cannot assign this number of estimates.
    """
    if assign == "one_each":
        if num_queries + num_slots not in (1, 2):
            raise InputError(
                "loss.assign=one_each needs one or two slots, or one and one query; there are "
                f"{num_slots} slots and {num_queries} queries"
            )
        num_slots += num_queries + num_slots == 1  # what the only slot leaves
    choices = np.array(list(itertools.product(range(2), repeat=num_slots)))
    if assign == "one_each":
        choices = choices[choices.sum(axis=1) == 1]
    return np.stack([choices == 0, choices == 1], axis=1).astype(np.float32)


def grouped(
    config: LossConfig, model: ModelConfig, outputs: Outputs, batch: Batch
) -> tuple[Outputs, Batch]:
    """Return rows of one estimate and one target each.

    Args:
        outputs: estimates `(B, S)`, which are returned as they are, or `(B, K + R, S)`, of which
            those of the R slots are the last.
        batch: its `member` `(B, K)` is 1 for the queries that belong to the target, and -1 for
            those that belong to the rest; if it is missing, all belong to the target.

    Returns:
        B rows, or 2 B rows of mixtures with several estimates: the target and the rest of each.
    """
    if outputs.estimate_BS.ndim == 2:
        return outputs, batch
    rows, num_slots = len(batch["target"]), model.slots
    num_queries = outputs.estimate_BS.shape[1] - num_slots
    member_BK = batch.get("member", jnp.ones((rows, num_queries)))
    if (num_queries, num_slots, config.assign) == (0, 1, "one_each"):
        estimate_B2S = with_rest(outputs.estimate_BS, batch["mixture"])
        outputs = Outputs(estimate_B2S, jnp.repeat(outputs.mask_BTFC, 2, axis=0))
        num_slots += 1
    queries_B2K = jnp.stack([member_BK > 0, member_BK < 0], axis=1).astype(member_BK.dtype)
    if not num_slots:
        return summed(outputs, batch, queries_B2K)
    allowed_P2R = sums(num_queries, num_slots, config.assign)

    def cost(slots_2R: jax.Array) -> jax.Array:
        """Loss of each mixture, `(B,)`."""
        sums_B2K = jnp.concatenate([queries_B2K, jnp.stack([slots_2R] * rows)], axis=-1)
        pairs = summed(jax.lax.stop_gradient(outputs), batch, sums_B2K)
        return jax.vmap(row_loss)(*pairs).reshape(rows, -1).mean(axis=1)

    def row_loss(*row: Outputs | Batch) -> jax.Array:
        outputs, batch = jax.tree.map(lambda x: x[None], row)
        return total_loss(config, loss_terms(config, model, outputs, batch))

    best_B = jnp.zeros(rows, jnp.int32)
    if len(allowed_P2R) > 1:  # one after another: there can be hundreds
        best_B = jnp.argmin(jax.lax.map(cost, jnp.asarray(allowed_P2R)), axis=0)
    slots_B2R = jnp.asarray(allowed_P2R)[best_B]
    return summed(outputs, batch, jnp.concatenate([queries_B2K, slots_B2R], axis=-1))


def with_rest(estimate_B1S: jax.Array, mixture_BS: jax.Array) -> jax.Array:
    """Append what the only estimate of each mixture leaves of it: `(B, 2, S)`."""
    return jnp.concatenate([estimate_B1S, mixture_BS[:, None] - estimate_B1S], axis=1)


def summed(outputs: Outputs, batch: Batch, sums_B2K: jax.Array) -> tuple[Outputs, Batch]:
    """Return rows of the two references, target and rest, and the sums of their estimates.

    A sum is active where one of its estimates is: its mask holds the largest values of theirs.
    """
    target_BS, mixture_BS = batch["target"], batch["mixture"]
    references_B2S = jnp.stack([target_BS, mixture_BS - target_BS], axis=1)
    totals_B2S = jnp.einsum("bmk,bks->bms", sums_B2K, outputs.estimate_BS)
    targets, totals = (x.reshape(-1, x.shape[-1]) for x in (references_B2S, totals_B2S))
    mask_BKTFC = outputs.mask_BTFC.reshape(len(sums_B2K), 1, -1, *outputs.mask_BTFC.shape[1:])
    own_B2K = (sums_B2K > 0)[..., None, None, None]
    masks = jnp.where(own_B2K, mask_BKTFC, _INACTIVE).max(axis=2)
    masks = masks.reshape(-1, *masks.shape[2:])
    mixtures = jnp.repeat(mixture_BS, 2, axis=0)
    return Outputs(totals, masks), {"mixture": mixtures, "target": targets}


def remixed(outputs: Outputs, batch: Batch) -> Batch:
    """Make a new batch of mixtures, each of estimates from two mixtures (RemixIT, 2022).

    Mixture i of the new batch is the sum of an estimate that belongs to the target of mixture i,
    and of one that belongs to the rest of mixture i - 1, scaled to the level of the rest of mixture
    i. The first is the new target. Both have no gradient. Two estimates of one mixture would teach
    nothing: if each is half of the mixture, so is each of their sum. A mixture without a query for
    the rest gives silence.

    Raises:
        InputError: the batch has only one mixture.
    """
    if len(batch["mixture"]) < 2:
        raise InputError("loss.remix needs at least two mixtures on each device; raise batch_size")
    estimate_BKS, member_BK = jax.lax.stop_gradient(outputs.estimate_BS), batch["member"]
    which_B2 = jnp.stack([member_BK.argmax(axis=1), member_BK.argmin(axis=1)], axis=1)
    pair_B2S, condition_B2E = (
        jnp.take_along_axis(x, which_B2[..., None], axis=1)
        for x in (estimate_BKS, batch["condition"])
    )
    target_BS, rest_BS = pair_B2S[:, 0], pair_B2S[:, 1]
    level_B1 = jnp.linalg.norm(rest_BS, axis=1, keepdims=True) + 1e-9
    other_BS = level_B1 * jnp.roll(rest_BS / level_B1, 1, axis=0)
    has_rest_B = member_BK.min(axis=1) < 0
    audible_B1 = (has_rest_B & jnp.roll(has_rest_B, 1))[:, None]
    return {
        "mixture": audible_B1 * (target_BS + other_BS),
        "target": audible_B1 * target_BS,
        "condition": condition_B2E.at[:, 1].set(jnp.roll(condition_B2E[:, 1], 1, axis=0)),
    }
