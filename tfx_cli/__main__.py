"""`python -m tfx_cli` is `tfx`."""

from tfx_cli.app import main

if __name__ == "__main__":
    main()
