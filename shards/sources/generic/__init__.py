"""Sources for any user's data: folders, tables, archives, webdataset, Hugging Face."""
