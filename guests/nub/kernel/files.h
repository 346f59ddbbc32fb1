/* The file area: a superblock, a directory of 64 entries, contiguous files (layout: guests/README.md, guests/filearea.py). */
#pragma once
#include "abi.h"

int files_mount(void); /* 0 or -E_NOFILES */
int files_slot(uint32_t index, struct file_info *info);
int files_stat(const char *name, struct file_info *info);
int files_read(const char *name, uint32_t offset, void *buffer, uint32_t length);
int files_create(const char *name, uint32_t length);
int files_append(const void *data, uint32_t length);
int files_commit(void);
int files_delete(const char *name);
uint32_t files_free(uint32_t sectors); /* first of so many sectors that belong to no file, 0 if there are none */
void files_abandon(void); /* the program that was writing is gone */
