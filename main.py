"""Entry point: `python main.py {fit,validate,test,predict} --config configs/….yaml`; see `elder.cli`."""

from elder.cli import main

if __name__ == "__main__":
    main()
