" SPDX-License-Identifier: Apache-2.0
autocmd BufNewFile,BufRead *.o2c setfiletype o2c
