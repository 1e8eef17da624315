"""FlashAttention, in torch and in Triton."""
