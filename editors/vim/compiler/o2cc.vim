" SPDX-License-Identifier: Apache-2.0
let current_compiler = 'o2cc'
CompilerSet makeprg=o2cc\ --emit\ check\ --error-format\ concise\ %:S
CompilerSet errorformat=%f:%l:%c:\ %trror[%m,%f:%l:%c:\ %tarning[%m,%f:%l:%c:\ %tote[%m,%f:\ %trror[%m
