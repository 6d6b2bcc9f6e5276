"""From files to batches on the device.

A reader (`roco`, `rocov2`, `tables`, `shards`, `cbis`, `vindr`, `folders`) names each image by its location
(`locations`) and holds the texts in byte buffers (`buffers`). `images` decodes an image (`dicom` a DICOM file), or
`cache` has it decoded. `views` draws each view's parameters and cuts it in a loader's process; `tokens` adds the
captions' token ids; `batches` says which samples go together and starts those processes. What they send is bytes and
parameters: `augment` makes the views of them on the device. `lock` keeps a folder to one process, `hub` asks the
Hugging Face hub. Nothing here knows what a model, a loss or a probe does with a batch.
"""
