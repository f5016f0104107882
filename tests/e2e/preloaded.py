"""What the process has loaded that forked commands come from (`tests.e2e.commands.fork`).

Nothing of the command line, whose console looks at the streams that it finds.
"""

import os

from raylla.engines.vllmparams import ENVIRONMENT
from raylla.models.libraries import uncollected

os.environ.update(ENVIRONMENT | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})

with uncollected():
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm import LLM  # noqa: F401

with uncollected():
    import deepspeed  # noqa: F401

    import raylla.policy.worker
    import raylla.reward.trainer  # noqa: F401
