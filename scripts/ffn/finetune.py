#!/usr/bin/env python3
"""Makes a float checkpoint of a published one that was decoded from a 4-bit file: trains it for some steps.

    scripts/ffn/finetune.py MODEL TEXT OUT [--steps 300] [--ctx 128] [--rate 1e-4] [--held TEXT] [--state FILE --seconds 300]

MODEL is a Hugging Face folder, OUT gets one in float32; embeddings, and a tied head, stay. Windows of --ctx tokens are drawn from TEXT, one a step,
for AdamW without decay; the rate rises over a tenth of the steps and falls to a tenth of it. It prints the
perplexity of --held before and after, and how far the matrices lie from the grid of Q4_1: from each block of 32
of MODEL with at most 16 values, which 15 equal steps span, the distance of OUT's numbers to the next of its grid.
With --state it stops after so many seconds of processor time, keeps what it has there, and the same command goes on. Needs torch,
transformers. Threads: OMP_NUM_THREADS.
"""
import argparse
import math
import os
import shutil
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BLOCK, LEVELS = 32, 16


def windows(tokenizer, path, ctx):
    ids = tokenizer(open(path, encoding="utf-8").read(), return_tensors="pt", add_special_tokens=False).input_ids[0]
    return ids[: len(ids) // ctx * ctx].view(-1, ctx)


def perplexity(model, rows):
    with torch.no_grad():
        losses = [model(input_ids=r[None], labels=r[None]).loss.item() for r in rows]
    return math.exp(sum(losses) / len(losses))


def off_grid(before, after):
    """Share of numbers further than 5 % of a step from the grid, and their rms distance in steps: 0.289 for numbers that
    know of no grid. Only blocks that had a grid count."""
    far = count = blocks = had = 0
    squares = 0.0
    for name, old in before.items():
        if old.ndim != 2 or old.shape[1] % BLOCK or "embed" in name or "lm_head" in name:
            continue
        a, b = old.reshape(-1, BLOCK), after[name].reshape(-1, BLOCK)
        low = a.min(1).values[:, None]
        step = (a.max(1).values[:, None] - low) / (LEVELS - 1)
        distance = lambda x: (lambda y: (y - y.round()).abs())((x - low) / step)
        grid = (distance(a) < 0.05).all(1)  # the published file is BF16, so a grid point can be missed by that much
        d = distance(b[grid])
        blocks, had = blocks + len(a), had + int(grid.sum())
        far, count, squares = far + int((d > 0.05).sum()), count + d.numel(), squares + float((d.double() ** 2).sum())
    return had / max(1, blocks), far / max(1, count), math.sqrt(squares / max(1, count))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("out")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--ctx", type=int, default=128)
    p.add_argument("--rate", type=float, default=1e-4)
    p.add_argument("--held", help="text to measure perplexity on: 8 windows of 256")
    p.add_argument("--state", help="file to keep an unfinished training in")
    p.add_argument("--seconds", type=float, default=math.inf, help="with --state: stop after so much processor time")
    a = p.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    before = {k: v.detach().clone() for k, v in model.state_dict().items()}
    held = windows(tokenizer, a.held, 256)[:8] if a.held else None
    rows = windows(tokenizer, a.text, a.ctx)
    order = torch.randperm(len(rows))
    model.get_input_embeddings().weight.requires_grad_(False)  # no matrix of the layers, and a quarter of the work
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=a.rate, betas=(0.9, 0.99), weight_decay=0)
    schedule = lambda s: min(1, (s + 1) / (a.steps / 10)) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * s / a.steps)))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    begin, mean = 0, 0.0
    if a.state and os.path.exists(a.state):
        begin, mean, weights, moments, past = torch.load(a.state)
        model.load_state_dict(weights), optimizer.load_state_dict(moments), rate.load_state_dict(past)
    elif a.held:
        print(f"perplexity before: {perplexity(model.eval(), held):.3f}", flush=True)
    model.train()
    start = time.process_time()
    for s in range(begin, a.steps):
        if a.state and time.process_time() - start > a.seconds:
            torch.save((s, mean, model.state_dict(), optimizer.state_dict(), rate.state_dict()), a.state + ".tmp")
            os.replace(a.state + ".tmp", a.state)
            print(f"step {s}: stopped after {time.process_time() - start:.0f} CPU s; the same command goes on")
            return
        row = rows[order[s % len(rows)]][None]
        loss = model(input_ids=row, labels=row).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate.step()
        mean += loss.item() / 50
        if s % 50 == 49:
            print(f"step {s + 1}: loss {mean:.3f}, {time.process_time() - start:.0f} CPU s", flush=True)
            mean = 0.0
    model.eval()
    if a.held:
        print(f"perplexity after: {perplexity(model, held):.3f}")
    had, share, distance = off_grid(before, model.state_dict())
    print(f"blocks with a 4-bit grid before: {had:.1%}; of their numbers now off it: {share:.1%}, "
          f"rms distance {distance:.3f} steps (0.289 without any grid)")
    model.save_pretrained(a.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(a.model, name), a.out)


if __name__ == "__main__":
    main()
