"""Entry point: `python main.py {fit,validate,test,predict,tune,trace,certify} --config …`, see `elder.cli`.

`python main.py {ablate,submit} …` plans, runs and compares many of these; see `elder.ablation.command_line`.
`python main.py zoo …` lists, checks and adds trained models; see `elder.zoo.command_line`.
"""

import os
import sys

if __name__ == "__main__":
    # Read when torch is loaded: threads that wait for others sleep instead of spinning. On a machine that does other
    # work beside, spinning makes a gradient ten times slower and more; on an idle one it gains nothing to speak of.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    if sys.argv[1:2] in (["ablate"], ["submit"]):  # these know files and processes only, and start in no time
        from elder.ablation.command_line import main

        sys.exit(main(sys.argv[1:]))

    if sys.argv[1:2] == ["zoo"]:
        from elder.zoo.command_line import main

        sys.exit(main(sys.argv[2:]))

    from elder.training.signals import leave_at_once

    leave_at_once()  # until the seconds of imports are over

    from elder.cli import main

    main()
