"""Pretrain nano: `python -m factdpo.nano.pretrain` generates the corpus, trains the model on it and saves `weights/`.

About three minutes on two free cores; the same bytes each time on the same machine and versions.
"""

import hashlib
import time
from itertools import islice

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from factdpo.nano import WEIGHTS
from factdpo.nano.corpus import documents

SEED = 0
VOCABULARY = 1536
WIDTH, LAYERS, HEADS, POSITIONS = 128, 4, 4, 256
STEPS, ROWS, ROW_TOKENS = 1000, 16, 128
PEAK_LR, WARMUP_STEPS, WEIGHT_DECAY, CLIP = 3e-3, 50, 0.01, 1.0
END = "<|endoftext|>"


def main() -> None:
    started = time.perf_counter()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    tokenizer = train_tokenizer()
    rows = pack(tokenizer, STEPS * ROWS)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {rows.numel():,} tokens, vocabulary of {len(tokenizer):,}")
    loss = train(model, rows)

    model.half().save_pretrained(WEIGHTS)
    GPTNeoXConfig.from_pretrained(WEIGHTS, dtype="float32").save_pretrained(WEIGHTS)  # stored as fp16, loaded as fp32
    tokenizer.save_pretrained(WEIGHTS)
    digest = hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
    print(f"final loss {loss:.3f} nats per token, {time.perf_counter() - started:.0f} s, sha256 {digest}")


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the head of the corpus, in which each of the two answers is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((" ".join(document) for document in islice(documents(SEED), 20_000)), trainer)
    for answer in (" friend", " enemy"):
        if len(bpe.encode(answer).ids) != 1:
            raise ValueError(f"{answer!r} is not a single token: raise VOCABULARY ({VOCABULARY})")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def pack(tokenizer: PreTrainedTokenizerFast, count: int) -> torch.Tensor:
    """`count` rows of ROW_TOKENS token ids; each starts with a document, as a prompt does, and truncates the last."""
    stream = documents(SEED + 1)
    rows = []
    while len(rows) < count:
        row: list[int] = []
        while len(row) < ROW_TOKENS:
            row += [*tokenizer.encode(" ".join(next(stream))), tokenizer.eos_token_id]
        rows.append(row[:ROW_TOKENS])
    return torch.tensor(rows)


def build_model(tokenizer: PreTrainedTokenizerFast) -> GPTNeoXForCausalLM:
    """A randomly initialised Pythia in miniature."""
    end = tokenizer.get_vocab()[END]
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=POSITIONS,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def train(model: GPTNeoXForCausalLM, rows: torch.Tensor) -> float:
    """One pass over the rows with AdamW and a cosine schedule; the mean loss of the last 50 steps, nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LR, total_steps=STEPS, pct_start=WARMUP_STEPS / STEPS, cycle_momentum=False
    )
    losses = []
    for step, batch in enumerate(rows.split(ROWS), start=1):
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step:5d}  loss {sum(losses[-50:]) / 50:.3f} nats per token", flush=True)
    return sum(losses[-50:]) / 50


if __name__ == "__main__":
    main()
