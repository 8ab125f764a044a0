"""The program `python -m jigclu`, which is the same as `python -m jigclu.launch`."""

from jigclu.launch import console

if __name__ == "__main__":
    console()
