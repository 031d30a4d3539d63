"""Run jobs on one model, stop each at random instants as Ctrl-C does, and tell what was left.

Run by `test_interrupts.py`: in a process of its own, without the tests' checks of annotations,
which would put instants of their own between a call and its result.
"""

import json
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch

import steerlens as sl
from steerlens.export import exporting
from steerlens.export.weight_edits import ablated_weights, edited_biases
from steerlens.models import exclusive
from steerlens.models.ownership import _use_of

METHODS = ("forward", "apply_rotary", "apply_causal_mask")
PROMPTS = ["Hi.", "How do I bake bread?", "Why?"]

folder, scratch, tries = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
model = sl.load_model(folder)
directions = torch.randn(4, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
vector = sl.SteeringVector(directions, range(4))
condition = sl.Condition(vector, 0, above=0.0, similarity=sl.similarities.projection)
steering = sl.Steering(vector, [1, 2], when=condition)
always = sl.Steering(vector, [1, 2])
quiet = {"max_new_tokens": 3, "progress": False}
exporting.load_model = lambda source: model  # so that it can be looked at afterwards


def generate():
    sl.generate(model, PROMPTS, steering, **quiet)


def stream():
    for _ in sl.stream(model, PROMPTS, steering, max_new_tokens=3):
        pass


def left_stream():
    steps = sl.stream(model, PROMPTS, steering, max_new_tokens=3)
    next(steps)
    steps.close()


def read():
    sl.extract(model, (PROMPTS[:2], PROMPTS[1:]), sl.estimators.mean_difference, progress=False)


def sweep():
    sl.sweep(model, vector, PROMPTS, layers=[1], strengths=[1.0], **quiet)


def biases():
    with edited_biases(model, always), edited_biases(model, always):
        model(torch.tensor([[5, 6]]))


def ablation():
    with ablated_weights(model, vector, layers=1):
        model(torch.tensor([[5, 6]]))


def export():
    sl.export_model(always, folder, scratch / "steered", force=True)


def attach():
    attachment = None
    try:
        attachment = steering.attach(model)
        model(torch.tensor([[5, 6]]))
        attachment.remove()
    except KeyboardInterrupt:
        if attachment is not None:
            attachment.remove()
        raise


weights = {name: (one.data_ptr(), one.clone()) for name, one in model.named_parameters()}
attributes = {name: set(vars(module)) for name, module in model.named_modules()}


def left():
    """What is not as it was."""
    found = [
        f"weight {name}"
        for name, one in model.named_parameters()
        if one.data_ptr() != weights[name][0] or not torch.equal(one, weights[name][1])
    ]
    for name, module in model.named_modules():
        if set(vars(module)) != attributes[name] or any(key in vars(module) for key in METHODS):
            found.append(f"attributes of {name}")
        if module._forward_hooks or getattr(module, "fwd_hooks", None):
            found.append(f"hooks of {name}")
    if model.context_level:
        found.append("a level of hooks")
    use, free = _use_of(model), []
    if use.running or use.edits:
        found.append("a note of use")

    def take():
        free.append(exclusive(model).acquire(timeout=1))
        if free[0]:
            exclusive(model).release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    if not free[0]:
        found.append("a held lock")
    return found


def stopped(job, after):
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        job()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


signal.signal(signal.SIGALRM, signal.default_int_handler)
random.seed(0)
told = {}
for job in (generate, stream, left_stream, read, sweep, biases, ablation, export, attach):
    job()
    start = time.perf_counter()
    job()
    took = time.perf_counter() - start
    reached, bad = 0, []
    for _ in range(tries if job is not export else tries // 3):
        reached += stopped(job, random.uniform(1e-6, took))
        bad += left()
        if bad:
            break
    told[job.__name__] = {"interrupts": reached, "left": bad}
    if bad:
        break
print(json.dumps(told))
