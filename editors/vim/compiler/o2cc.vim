" SPDX-License-Identifier: Apache-2.0
let current_compiler = 'o2cc'
CompilerSet makeprg=o2cc\ --emit\ check\ --error-format\ concise\ %:S
CompilerSet errorformat=%f:%l:%c:\ %trror[O2C%n]:\ %m,%f:%l:%c:\ %tarning[O2C%n]:\ %m,%f:%l:%c:\ %tote[O2C%n]:\ %m,%f:\ %trror[O2C%n]:\ %m
