"""Entry point: `python main.py {fit,validate,test,predict} --config configs/….yaml`; see `elder.cli`."""

import os

if __name__ == "__main__":
    # Read when torch is loaded: threads that wait for others sleep instead of spinning. On a machine that does other
    # work beside, spinning makes a gradient ten times slower and more; on an idle one it gains nothing to speak of.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from elder.cli import main

    main()
