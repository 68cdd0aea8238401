"""The categories that a dataset is made of, and the attributes that its images may show."""

from lbgen.vocabulary.vocabulary import Category, Vocabulary, load_vocabulary

__all__ = ["Category", "Vocabulary", "load_vocabulary"]
