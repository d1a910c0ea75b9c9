#compdef tune
# Completion of tune in zsh; `tune completion zsh` prints this.

_tune() {
    local -a found
    found=(${(f)"$(${words[1]} _complete "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)"})
    if (( $#found )); then
        compadd -S '' -- ${(M)found:#*=}
        compadd -- ${found:#*=}
    else
        compset -P '*='
        _files
    fi
}
# as an autoloaded function this file is the first call; sourced, it declares the function
if [[ ${funcstack[1]} == _tune ]]; then
    _tune "$@"
else
    compdef _tune tune
fi
