"""`python -m factdpo` is `factdpo`."""

from factdpo.commands.main import main

if __name__ == "__main__":
    main()
