"""The accuracy study of arXiv 2606.06034 on a model that we trained."""
