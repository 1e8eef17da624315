"""`python -m glasscluster`, and `torchrun -m glasscluster`."""

from glasscluster.cli import main

if __name__ == "__main__":
    main()
