"""What keeping freed memory gains in a training step on the CPU: ``python benchmarks/memory.py``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STEPS = 4
WARM_UP = 2


def steps(keep: bool) -> list[float]:
    """Seconds of some training steps of EfficientNet-Lite0 on 32 images of 224 x 224 pixels."""
    import torch

    from tyre_lightning.memory import keep_freed_memory
    from tyre_lightning.model.backbones import Network, preset

    if keep:
        keep_freed_memory()
    name = "efficientnet_lite0"
    network = Network(name, 4, preset(name).mean, preset(name).std).train()
    images, label = torch.zeros(32, 3, 224, 224, dtype=torch.uint8), torch.zeros(32, dtype=torch.long)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        torch.autograd.backward(torch.nn.functional.cross_entropy(network(images), label))
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def main() -> None:
    """Each way in a process of its own, since the setting cannot be taken back."""
    if len(sys.argv) > 1:
        print(statistics.median(steps(sys.argv[1] == "keep")))
        return
    median = {
        way: float(subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout)
        for way in ("default", "keep")
    }
    print(f"default {median['default']:.2f} s/step, keeping freed memory {median['keep']:.2f} s/step")
    print(f"ratio {median['default'] / median['keep']:.2f}")


if __name__ == "__main__":
    main()
