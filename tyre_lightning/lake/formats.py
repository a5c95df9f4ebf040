"""Which image files are read: what is listed is what may be opened, and the other way round."""

IMAGE_FORMATS = {
    "JPEG": ("jpg", "jpeg"),
    "PNG": ("png",),
    "WebP": ("webp",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
}  # a format and the suffixes of its files
IMAGE_SUFFIXES = tuple(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes)
