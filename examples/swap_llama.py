"""Put another attention into a Llama, train it a little, save it, load it and let it write.

python examples/swap_llama.py --attention sigmoid
python examples/swap_llama.py --attention gated --model-dir my-llama --text my.txt --steps 500
"""

from __future__ import annotations

import torch
from language_model import arguments, load, rows, train

import softgate


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--attention", default="gated", help="gated, sigmoid, softplus, …")
    parser.add_argument("--activation", help="another activation for the feed-forward layers")
    parser.add_argument("--loss", help="another loss, such as stablemax")
    options = parser.parse_args()
    model, text, tokenizer = load(options)

    before = model.eval()(rows(text, options, 0)).logits.detach()
    softgate.swap(model, attention=options.attention, activation=options.activation, loss=options.loss)
    difference = float((model(rows(text, options, 0)).logits.detach() - before).abs().max())
    print(f"{options.attention}: the logits move by {difference:.3g} before any training")

    losses = train(model, text, options)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {options.steps} steps")

    softgate.save_pretrained(model, options.out)
    again = softgate.from_pretrained(options.out)
    prompt = text[None, :8]
    written = again.generate(prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
    assert torch.equal(written, model.generate(prompt, max_new_tokens=16, do_sample=False, pad_token_id=0))
    shown = bytes(written[0].tolist()).decode(errors="replace") if tokenizer is None else tokenizer.decode(written[0])
    print(f"loaded again from {options.out}, it writes: {shown!r}")


if __name__ == "__main__":
    main()
