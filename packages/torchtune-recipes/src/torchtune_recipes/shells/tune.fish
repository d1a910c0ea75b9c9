# Completion of tune in fish; `tune completion fish` prints this.

function __tune_complete
    set -l before (commandline -opc)
    set -l begun (commandline -ct)
    set -l found ($before[1] _complete $before[2..] "$begun" 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        __fish_complete_path "$begun"
    end
end
complete -c tune -f -a '(__tune_complete)'
