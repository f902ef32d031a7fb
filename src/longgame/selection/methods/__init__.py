"""Selection methods of the field, one file each."""
