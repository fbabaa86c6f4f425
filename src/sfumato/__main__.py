"""`python -m sfumato ...`: what launchers of several processes start, torchrun -m sfumato ..."""

from sfumato.cli import main

if __name__ == "__main__":
    main()
