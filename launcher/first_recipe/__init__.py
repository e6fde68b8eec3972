"""``thawline init``: a first recipe from a data file or folder, with its reasons in comments.

In the order to read them:

    dialect      the encoding of a file; the delimiter and quotes of a csv
    columns      a column, and what its values say of it
    looking      a file or folder -> its columns, and how the recipe names it
    guessing     which column is the text, the label, the image, and why
    lengths      how many tokens the texts have, without a tokenizer
    proposal     the model and the stages for what was found
    writing      the recipe's text, checked by reading it

Imports no torch: what it writes is for `thawline plan` to try.
"""
