"""Sources for the user's own data: folders, tables, archives, webdataset, Hugging Face."""
