"""Train a WordPiece vocabulary on captions, for Bio_ClinicalBERT's architecture where its own cannot be downloaded.

python tools/train_vocabulary.py --root /data/roco --out vocab.txt
python main.py --root /data/roco --text-model vocab.txt ...

Weights trained with Bio_ClinicalBERT's own vocabulary (MedCLIP's among them) do not fit another one: train from
--pretrained none.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, metavar="FOLDER", help="a ROCO tree; its training captions are read")
    parser.add_argument("--out", required=True, metavar="FILE", help="the vocabulary to write, one entry a line")
    parser.add_argument("--size", type=int, default=28_996, help="entries at most (default: %(default)s)")
    args = parser.parse_args()
    from tokenizers import BertWordPieceTokenizer

    import utils
    from data.buffers import read_lines
    from data.roco import data_folder

    try:
        _, captions = read_lines(data_folder(args.root) / "train" / "radiology" / "captions.txt")
        if not len(captions):
            raise utils.InputError(f"{args.root}: no training captions")
        tokenizer = BertWordPieceTokenizer(lowercase=True)
        tokenizer.train_from_iterator(captions, vocab_size=args.size, show_progress=False)
        entries = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        utils.write_text(Path(args.out), "".join(f"{token}\n" for token, _ in entries))
    except utils.InputError as error:
        print(f"train_vocabulary.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{args.out}: {len(entries)} entries from {len(captions)} captions")


if __name__ == "__main__":
    main()
