"""A sentence-transformers model: one embedding per sentence."""

import mlflow
import numpy as np
from mlflow.models import infer_signature
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from show import show
from sklearn.decomposition import TruncatedSVD
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

NAME = "Sentences"
BODY = {"inputs": ["a cat sleeps", "a dog sleeps", "prices rise"]}

# Vectors of words by the sentences that they occur in. A pretrained model is one line instead:
# model = SentenceTransformer("all-MiniLM-L6-v2")
sentences = [
    "a cat sleeps",
    "a dog sleeps",
    "a dog barks",
    "a cat eats",
    "prices rise",
    "prices fall",
    "rents rise",
]
words = sorted({word for each in sentences for word in each.split()})
counts = np.array([[each.split().count(word) for each in sentences] for word in words], np.float32)
tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[0]))
tokenizer.pre_tokenizer = Whitespace()
vectors = TruncatedSVD(4, random_state=0).fit_transform(counts).astype(np.float32)
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], device="cpu")

mlflow.sentence_transformers.log_model(
    model,
    name="model",
    signature=infer_signature(sentences, model.encode(sentences)),
    pip_requirements=["sentence-transformers"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
