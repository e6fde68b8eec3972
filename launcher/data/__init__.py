"""Data: files or a hub's data set -> the rows of each split -> each rank's batches of each step.

loading                  the splits of a recipe
sources, table_files     where files are, and what is in them: csv_files, json_files, text_encoding, class_names
labels, sampling, rows   names and numbers of labels; splits and limits; rows by position
order                    which row comes when: a function of (seed, stage, epoch, position)
decoding                 an image file -> RGB pixels
batches                  the micro-batches of a rank; packing puts samples into tensors
"""

from launcher.data.loading import Splits, load

__all__ = ["Splits", "load"]
