"""Data: files or a hub's data set -> the rows of each split -> each rank's batches of each step.

checking, loading        the splits of a recipe, with every image opened, or without
splits, bad_rows         rows by split, and what is left out of them
sources, table_files     where files are, and what is in them: csv_files, json_files, text_encoding, class_names
image_folders            folders as splits and labels: folder_metadata, image_files
media_check              every image is decoded once: media_cache
labels, sampling, rows   names and numbers of labels; splits and limits; rows by position
order                    which row comes when: a function of (seed, stage, epoch, position)
decoding                 an image file -> RGB pixels
batches                  the micro-batches of a rank; packing puts samples into tensors
"""

from launcher.data.loading import load
from launcher.data.splits import Splits

__all__ = ["Splits", "load"]
