"""Recomputation in other people's words: what Megatron calls the parts of a layer, and what they are here.

Megatron-LM (`--recompute-granularity selective --recompute-modules ...`, transformer_config.py of megatron
core) names parts of a layer that are computed again in backward. Ours are the functions that `KeepAll` is
asked to compute; a word that has none is refused, with the reason.

    word            here      kept to start from    computed again
    core_attn       core      Q, K, V               scores, softmax, its dropout, the sum over V
    layernorm       norm      the norm's input      the norm before attention, the norm before the MLP or experts
    mlp             mlp       the MLP's input       both matrices (the last only where something needs it)
    moe             moe       the router's input    router, dispatch, experts, combine, shared expert
    moe_act         moe_act   the activation's      the activation of each expert
                              input
    shared_experts  shared    its input             both matrices of the expert that every token passes
    mla_up_proj     latent_up latents               their norms, Q, K and V from them, the rotation

Of layernorm, moe_act and mla_up_proj the output alone is discarded (discard.py); the others are checkpoints
(recompute.py).
But: of layernorm Megatron makes a norm's statistics anew, too; here they stay.
"""

from __future__ import annotations

from glasscluster.base.errors import InputError

MEGATRON = {
    "core_attn": "core",
    "layernorm": "norm",
    "mlp": "mlp",
    "moe": "moe",
    "moe_act": "moe_act",
    "shared_experts": "shared",
    "mla_up_proj": "latent_up",
}
# torchtitan's list of what `selective_ac_option = "op"` saves (activation_checkpoint.py), by operator: its
# word, and n, where each nth call of the word in a layer is not saved (0: all are). A product with a bias is
# addmm and counts as mm. Collectives (reduce_scatter, all_to_all) and fp8's max have no operator here.
TORCHTITAN = {
    "aten::mm": ("mm", 2),
    "aten::addmm": ("mm", 2),
    "glasscluster::flash_forward": ("attention", 0),
}
NOT_HERE = {
    "mhc": "belongs to hyper-connections, which no model here has",
}


def parts_of(words: str) -> tuple[str, ...]:
    """The parts of a layer that Megatron's words name.

    Args:
        words: with commas between, such as core_attn,mlp.

    Returns:
        Names of our parts, in the table's order.

    Raises:
        InputError: for an unknown word, with the nearest; for one without a part here, with the reason.
    """
    given = [word.strip() for word in words.split(",") if word.strip()]
    for word in given:
        if word in NOT_HERE:
            raise InputError("recompute_modules", word, NOT_HERE[word], MEGATRON)
        if word not in MEGATRON:
            raise InputError("recompute_modules", word, "is no module of Megatron's", [*MEGATRON, *NOT_HERE])
    if not given:
        raise InputError("recompute_modules", words, "names nothing; --recompute none keeps all", MEGATRON)
    return tuple(part for word, part in MEGATRON.items() if word in given)
