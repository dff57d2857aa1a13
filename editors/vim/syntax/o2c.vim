" SPDX-License-Identifier: Apache-2.0
" Keywords of grammar/o2c.lark; a test compares them.
if exists('b:current_syntax')
  finish
endif

syntax keyword o2cTodo contained TODO FIXME XXX
syntax region o2cComment start='//' end='$' contains=o2cTodo,@Spell
syntax region o2cComment start='/\*' end='\*/' contains=o2cTodo,@Spell
syntax region o2cString start='"' end='"' oneline
syntax match o2cNumber '\<\(0[xX][0-9A-Fa-f_]\+\|[0-9][0-9_]*\(\.[0-9]\+\)\?\)'
syntax match o2cUnit '\(\d\s*\)\@<=\<\(B\|KiB\|MiB\|GiB\|ns\|us\|ms\|s\|min\)\>'
syntax match o2cOperator '[-+*/%&|^<>=!~]\+\|\.\.\+'
syntax match o2cFunction '\<\h\w*\ze('

syntax keyword o2cStructure compartment caps test extern fn use const set
syntax keyword o2cRule code heap stack write in entry entries gate call icall audition transition probes on
syntax keyword o2cClause writes reads frees allocates gives takes lends transfer returns stores calls callback
syntax keyword o2cClause shares pure require when until return shared
syntax keyword o2cWord modules functions of vmlinux private tracked behind pernet percpu symbols whole except imports self if present
syntax keyword o2cWord ops as at access free accept own payload quiescent for most violation missed deny report kill
syntax keyword o2cWord panic strict optimized to kernel held owned return
syntax keyword o2cStep given store enter leave phase expect size buffer allow foreign freed untracked user final
syntax keyword o2cType struct union sizeof

highlight default link o2cTodo Todo
highlight default link o2cComment Comment
highlight default link o2cString String
highlight default link o2cNumber Number
highlight default link o2cUnit Number
highlight default link o2cOperator Operator
highlight default link o2cFunction Function
highlight default link o2cStructure Structure
highlight default link o2cRule Statement
highlight default link o2cClause Statement
highlight default link o2cStep Statement
highlight default link o2cWord Keyword
highlight default link o2cType Type

let b:current_syntax = 'o2c'
