"""FlashAttention: the algorithm in torch and in Triton, the operators that call it, and what they cost.

- operators.py: library operators, autograd, and `flash_attention` for models
- algorithm.py: forward and backward, tile by tile, in plain torch (tiles.py: how tiles are laid out)
- triton.py: the same on an NVIDIA GPU, by the kernels of triton_kernels.py
- parts.py: which queries see which keys, as rectangles and triangles
- bias.py: numbers that are added to the scores
- costs.py: FLOPs and slow-memory bytes
"""
