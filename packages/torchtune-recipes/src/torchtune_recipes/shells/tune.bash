# Completion of tune in bash; `tune completion bash` prints this.

_tune() {
    local line=${COMP_LINE:0:COMP_POINT} begun known="" found
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    begun=${words[${#words[@]} - 1]}
    # readline replaces only what stands after the last of its own word breaks
    [[ $COMP_WORDBREAKS == *=* && $begun == *=* ]] && known=${begun%"${begun##*=}"}
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("${found#"$known"}")
    done < <("${words[0]}" _complete "${words[@]:1}" 2>/dev/null)
    # after key= and in a list of keys no space is wanted
    [[ "${COMPREPLY[*]}" == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _tune tune
