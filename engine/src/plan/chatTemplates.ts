/** Where Hugging Face keeps the templates that a model has beside its first, one file each. */
export const chatTemplatesFolder = 'additional_chat_templates';

/** Nothing else is taken from there: a name that is a file's on every system, in this folder and no other. */
export const chatTemplatePattern = /^additional_chat_templates\/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\.jinja$/;
